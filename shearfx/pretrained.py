"""Hugging Face folders, hub ids and GGUF files, read without running or unpickling anything they contain."""

import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from shearfx.errors import CheckpointError, message

__all__ = ["check_config", "download", "model_class", "read_folder", "read_gguf", "read_tokenizer"]

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
CONVERT = (
    "where you trust its origin, load it once with transformers and save it again: "
    "`AutoModel....from_pretrained(folder).save_pretrained(new_folder)` writes safetensors"
)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase | None]


def download(spec: str) -> Path:
    """Fetch the model that the hub knows as ``spec`` (only configs, tokenizer and safetensors) and return its folder.

    Raises:
        CheckpointError: ``spec`` cannot be a hub id, or the hub does not have it, does not show it, or is out of reach.
    """
    looked = f"looked for a path first: there is no {Path(spec).expanduser().absolute()}"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", spec) or Path(spec).suffix in {".gguf", ".safetensors", *PICKLES}:
        todo = "name a Hugging Face folder, a GGUF file, a hub id (owner/name), or package.module:factory"
        raise CheckpointError(message(f"there is no model {spec!r}", where=looked, todo=todo))
    try:
        return Path(snapshot_download(spec, allow_patterns=WANTED, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        todo = "accept its licence on its page, then log in with `hf auth login`"
        raise CheckpointError(message(f"the hub shows {spec!r} only on request", where=looked, todo=todo)) from error
    except RepositoryNotFoundError as error:
        todo = "check the spelling, or log in with `hf auth login` if the model is private"
        raise CheckpointError(message(f"the hub has no model {spec!r}", where=looked, todo=todo)) from error
    except Exception as error:  # offline mode, name resolution, proxies, full disks: the hub raises many kinds
        where = f"{looked}; then asked the hub: {_brief(error)}"
        todo = "check the spelling of the path, or the network if it is a hub id"
        raise CheckpointError(message(f"could not get the model {spec!r}", where=where, todo=todo)) from error


def read_folder(folder: Path, *, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    """Read a Hugging Face folder: (model in eval mode, tokenizer or None).

    The class is the one that ``config.json`` names, if it is registered for that config with one of the Auto
    classes; weights come from safetensors only and must be complete.

    Raises:
        CheckpointError: a file is missing, damaged, pickled or quantised, or wants code of its own to be run.
    """
    if (folder / "adapter_config.json").is_file():
        raise _adapter(folder)
    if not (folder / "config.json").is_file():
        return _folder_without_config(folder, dtype, device)
    check_config(folder / "config.json")
    if device.type != "meta":
        _check_weights(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise _unreadable("config.json does not describe a model", folder, error) from error
    cls = model_class(config, folder)
    try:
        if device.type == "meta":
            model = _without_weights(cls, config, dtype)
        else:
            model, info = cls.from_pretrained(
                folder, config=config, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True
            )
            _check_complete(info, folder)
            model = model.to(device)
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable(f"the weights do not load as a {cls.__name__}", folder, error) from error
    return model.eval(), read_tokenizer(folder)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer in a folder; None if it holds none.

    Raises:
        CheckpointError: its files are damaged.
    """
    return _tokenizer(folder) if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def read_gguf(path: Path, *, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    """Read a GGUF file: (model with dequantised weights, in eval mode; tokenizer).

    Raises:
        CheckpointError: not a GGUF file, damaged, or of an architecture that transformers cannot read.
    """
    if path.suffix in PICKLES:
        raise CheckpointError(
            message("a pickled file can run any code, so it is not opened", where=str(path), todo=CONVERT)
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            todo = "name a GGUF file, or the folder that holds config.json and the safetensors files"
            raise CheckpointError(message("the file is not GGUF", where=str(path), todo=todo))
    location: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(**location)
        seq2seq = config.is_encoder_decoder
        auto: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        if device.type == "meta":
            with torch.device("meta"):
                model = auto.from_config(config, dtype=dtype or torch.float32)
        else:
            # the config is passed on, as each reading of the file's header costs seconds
            options = {"config": config, "dtype": dtype or torch.float32, "output_loading_info": True}
            read, info = auto.from_pretrained(**location, **options)
            _check_complete(info, path)
            # transformers marks what it read as quantised, and then refuses to train or save it, although the
            # weights are plain by now: move them into a model that was never marked
            model = auto.from_config(config, dtype=read.dtype)
            model.load_state_dict(read.state_dict())
            model.generation_config = read.generation_config
            model = model.to(device)
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable("the GGUF file cannot be read", path, error) from error
    return model.eval(), _tokenizer(path.parent, gguf_file=path.name)


def _adapter(folder: Path) -> CheckpointError:
    """Transformers would put it on the base that it names, or on the model beside it, whether it fits or not."""
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    beside = " beside the model" if (folder / "config.json").is_file() else ", and no model"
    what = f"the folder holds an adapter{beside}; its base is {base!r}"
    todo = (
        f"merge it first, `PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload()`, or pass that PeftModel"
    )
    return CheckpointError(message(what, where=str(folder), todo=f"{todo} from Python"))


def _folder_without_config(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    files = sorted(folder.iterdir())
    gguf = [file for file in files if file.suffix == ".gguf"]
    if len(gguf) == 1:
        return read_gguf(gguf[0], dtype=dtype, device=device)
    todo = "name the folder that save_pretrained wrote"
    if gguf:
        todo = f"name one of its GGUF files: {', '.join(file.name for file in gguf)}"
    found = ", ".join(file.name for file in files[:6]) or "nothing"
    raise CheckpointError(message("the folder has no config.json", where=f"{folder} (holds {found})", todo=todo))


def check_config(path: Path) -> None:
    """Refuse a config that asks for quantised weights or for code from elsewhere.

    Raises:
        CheckpointError: it does, or it is no JSON.
    """
    raw = _json(path)
    if "quantization_config" in raw:
        todo = "name the unquantised checkpoint, or a GGUF file, which is dequantised on reading"
        raise CheckpointError(message("the weights are stored in a quantised form", where=str(path), todo=todo))
    for key, value in _implementations(raw):
        if "/" in value:  # transformers would fetch it from the hub and run it
            todo = f"remove {key!r} from the file"
            raise CheckpointError(message(f"it asks for the foreign kernel {value!r}", where=str(path), todo=todo))


def _implementations(raw: object) -> list[tuple[str, str]]:
    """List (key, text) of every entry, nested ones too, that chooses an implementation of an operator."""
    found: list[tuple[str, str]] = []
    if isinstance(raw, list):
        return [pair for item in raw for pair in _implementations(item)]
    if isinstance(raw, dict):
        for key, value in raw.items():
            if "implementation" in key:
                found.append((key, json.dumps(value)))
            found += _implementations(value)
    return found


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _json(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise CheckpointError(
                message("the index has no usable weight_map", where=str(index), todo="fetch it again")
            )
    else:
        names = ["model.safetensors"]
    for name in names:
        path = folder / name
        if not path.is_file():
            pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
            if pickled:
                what = f"its weights are pickled ({pickled[0]}); a pickle can run any code, so it is not opened"
                raise CheckpointError(message(what, where=str(folder), todo=CONVERT))
            raise CheckpointError(
                message(f"{name} is missing", where=str(folder), todo="copy or fetch the model again")
            )
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise _unreadable("the safetensors file is truncated or damaged", path, error) from error


def _check_complete(info: dict[str, Any], where: Path) -> None:
    missing = sorted(info.get("missing_keys", ()))
    if missing:  # transformers would have filled them with random numbers
        what = f"{len(missing)} weights are missing, {missing[0]} first"
        raise CheckpointError(message(what, where=str(where), todo="fetch the model again, or correct its config.json"))


def model_class(config: PreTrainedConfig, folder: Path) -> Any:
    """Return the model class that the config names, looked up among those that the Auto classes register for it.

    Raises:
        CheckpointError: transformers registers no such class for such a config.
    """
    registered: dict[str, type[PreTrainedModel]] = {}
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("_MAPPING"):
            classes = mapping.get(type(config), ())
            registered |= {cls.__name__: cls for cls in (classes if isinstance(classes, tuple) else (classes,))}
    for name in config.architectures or ():
        if name in registered:
            return registered[name]
    raise CheckpointError(
        message(
            f"config.json names the architectures {config.architectures}, none of which transformers registers",
            where=str(folder),
            todo=f"set it to one of {sorted(registered)}, or use a factory, `package.module:factory`",
        )
    )


def _without_weights(cls: Any, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = cls._from_config(config, dtype=dtype or config.dtype or torch.float32)
    return model


def _tokenizer(folder: Path, **options: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:
        raise _unreadable("the tokenizer cannot be read", folder, error) from error
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable("the file is not JSON", path, error) from error
    if not isinstance(raw, dict):
        raise CheckpointError(message("the file is not a JSON object", where=str(path), todo="fetch the model again"))
    return raw


def _unreadable(what: str, path: Path, error: Exception) -> CheckpointError:
    todo = "copy or fetch it again, and check that transformers reads it"
    return CheckpointError(message(f"{what}: {_brief(error)}", where=str(path), todo=todo))


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
