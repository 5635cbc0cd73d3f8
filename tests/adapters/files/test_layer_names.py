"""Names from any tool's file find the base's layers, and endings match exactly the adapted ones."""

from farm.adapters.files.layer_names import endings_of, layer_names, located
from farm.base.interface import Base


def test_names_of_both_text_encoder_spellings_find_the_bases_layers(base: Base) -> None:
    known = layer_names(base)
    wanted = next(name for name in known if name.endswith("layers.1.self_attn.q_proj"))
    for spelling in (
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj",
        "text_encoder.encoder.layers.1.self_attn.q_proj",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        "encoder.layers.1.self_attn.q_proj",
    ):
        assert located([spelling], known) == ({spelling: wanted}, [])


def test_endings_mean_exactly_the_adapted_layers(base: Base) -> None:
    known = layer_names(base)
    queries = [name for name in known if name.endswith((".to_q", ".to_out.0"))]
    assert endings_of(queries, known) == ["to_out.0", "to_q"]
    some = queries[1:]
    assert endings_of(some, known) == sorted(name.removeprefix("unet.") for name in some)
