"""How diffusers, transformers and peft are imported: quietly, without what the farm does not use."""
