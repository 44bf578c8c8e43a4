"""Pictures of any stage of the pipeline: one file per kind of picture."""
