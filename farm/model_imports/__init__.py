"""How diffusers, transformers and peft are imported: quietly, and without unused parts."""
