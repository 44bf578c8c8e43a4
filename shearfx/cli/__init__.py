"""The command line ``shearfx``: analyze, show, prune, layers, verify, eval, and LoRAShear: shear, report, knowledge,
recover.

Only typer and rich are imported here; torch and transformers wait until a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

import shearfx
from shearfx.cli import analyze, evaluate, layers, prune, recover, report, shear, show, verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="shearfx",
    help="Structured pruning of PyTorch models, proven to compute the same as the model with the parts zeroed.",
    epilog="\n\n".join(
        (
            "[bold]Prune a model in two commands[/bold]",
            "shearfx prune HuggingFaceTB/SmolLM2-135M-Instruct --ratio 0.2 --saliency taylor -o small",
            "shearfx verify small --original HuggingFaceTB/SmolLM2-135M-Instruct",
            "MODEL is a Hugging Face folder, a hub id, a GGUF file, a folder that shearfx wrote, or "
            "package.module:factory, a function that returns the model and its example inputs.",
        )
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"shearfx {shearfx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _examples(*lines: str) -> str:
    return "\n\n".join(("[bold]Examples[/bold]", *lines))


app.command(
    epilog=_examples(
        "shearfx analyze HuggingFaceTB/SmolLM2-135M-Instruct",
        "shearfx analyze ./model.gguf --json | jq .coverage",
        "shearfx analyze mypackage.nets:unet --print-after=infer",
        "shearfx analyze ./small --original mypackage.nets:unet",
    )
)(analyze.analyze)
app.command(
    epilog=_examples(
        "shearfx show HuggingFaceTB/SmolLM2-135M-Instruct -o graph.html",
        "shearfx show ./my-llama -o graph.svg -o graph.pdf",
        "shearfx show ./my-llama --plan plan.json -o cut.html --overwrite",
        "shearfx show mypackage.nets:unet -o unet.graphml -o unet.explorer.json",
    )
)(show.show)
app.command(
    epilog=_examples(
        "shearfx prune ./my-llama --ratio 0.2 --saliency magnitude -o ./small",
        "shearfx prune ./my-llama --ratio 0.3 --saliency taylor --text notes.txt --scope uniform -o ./small",
        "shearfx prune ./my-llama --ratio 0.2 --kinds ffn --round-to 64 -o plan.json --plan-only",
        "shearfx prune ./my-llama --apply plan.json -o ./small",
        "shearfx prune ./small --original mypackage.nets:unet --ratio 0.1 -o ./smaller",
    )
)(prune.prune)
app.command(
    epilog=_examples(
        "shearfx layers ./my-llama --text notes.txt",
        "shearfx layers ./my-llama --drop 6 --text notes.txt -o ./shorter",
        "shearfx layers ./my-llama --drop 6 --deepest -o ./shorter",
        "shearfx layers ./my-t5 --layer encoder.block.3 --layer decoder.block.5 -o ./shorter",
    )
)(layers.layers)
app.command(
    epilog=_examples(
        "shearfx verify ./small --original ./my-llama",
        "shearfx verify ./small --original mypackage.nets:unet --json",
        "shearfx verify ./smaller --original ./small --original mypackage.nets:unet",
    )
)(verify.verify)
app.command(
    "eval",
    epilog=_examples(
        "shearfx eval ./small --text wikitext2_test.txt --tasks tasks/ --limit 200 --answers small.jsonl --speed",
        "shearfx eval ./my-llama --text notes.txt --sequence-length 512 --max-tokens 20000 --json",
        "shearfx eval ./small --original mypackage.nets:tiny_lm --text notes.txt",
    ),
)(evaluate.evaluate)
app.command(
    epilog=_examples(
        "shearfx shear ./my-llama --ratio 0.2 --pretrain notes.txt --minutes 30 -o run",
        "shearfx shear ./my-llama --pretrain c4.parquet --instruct alpaca.json --gamma auto --set lr=5e-4 -o run",
        "shearfx shear ./my-llama --config run.yaml -o run --resume",
        "shearfx shear ./my-llama --pretrain notes.txt -o run --set distill=0 --set batch_size=1 --set accumulate=4",
        "shearfx shear ./my-llama --pretrain notes.txt -o run --set milliseconds=40 --set layers=auto",
        "shearfx shear ./my-llama --pretrain notes.txt -o run --set scope=uniform --set merge=never",
    )
)(shear.shear)
app.command(
    epilog=_examples(
        "shearfx report run",
        "shearfx report run -o report.html",
        "shearfx report run-20 run-50 -o compared.html",
    )
)(report.report)
app.command(
    epilog=_examples("shearfx knowledge ./my-llama --pretrain c4.parquet --ratios 0.25 --ratios 0.5 -o knowledge.json")
)(recover.knowledge)
app.command(
    epilog=_examples("shearfx recover ./small --original ./my-llama --pretrain c4.parquet --minutes 30 -o recovered")
)(recover.recover)


def main() -> None:
    """Run the command line; the entry point of ``shearfx`` and ``python -m shearfx``."""
    app()
