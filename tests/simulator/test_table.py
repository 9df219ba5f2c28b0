"""The table of methods: FLAP-SAM's counts and figures, exactly."""

import json
from dataclasses import replace

import pytest

from wardround.clients.lora import LoRA
from wardround.clients.methods import MaSam, Samed
from wardround.clients.sam import Sam
from wardround.simulator.table import Row, TableSetting, rows, text

COUNTS = {  # FLAP-SAM's rows at ViT-B, 224 px, rank 32, then further methods (LoRA-SB at 64, SAMed at 4): C = 2, C = 1
    "full": (90_532_927, 90_398_774),
    "attention": (31_681_152, 31_681_152),
    "attention_code": (30_053_104, 29_919_208),
    "decoder": (3_902_195, 3_768_042),
    "partial_decoder": (478_320, 344_424),
    "lora": (1_368_064, 1_368_064),
    "lora_decoder": (5_270_259, 5_136_106),
    "flap_sam": (1_846_384, 1_712_488),
    "lora_sb": (38 * 64**2 + 478_320, 38 * 64**2 + 344_424),
    "samed": (147_456 + 6_220 + 3_902_195, 147_456 + 6_220 + 3_768_042),
    "samed_s": (171_008 + 6_220 + 610_931, 171_008 + 6_220 + 476_778),
    "ma_sam": (24 * 1_034_112 + 3_902_195, 24 * 1_034_112 + 3_768_042),
}

FIGURE_1 = {  # overhead and reduction; attention's 2.9 follows from the printed overheads (the paper prints 2.8)
    "full": (67.45, 1.0),
    "attention": (23.60, 2.9),
    "decoder": (2.91, 23.2),
    "partial_decoder": (0.36, 187.4),
    "lora": (1.02, 66.1),
    "lora_decoder": (3.93, 17.2),
    "flap_sam": (1.38, 48.9),
}


@pytest.fixture(scope="module")
def paper() -> list[Row]:
    return rows(TableSetting())


@pytest.mark.parametrize(("classes", "column"), [(2, 0), (1, 1)])
def test_counts_are_those_of_the_paper(classes: int, column: int) -> None:
    found = {row.method: row.trained_parameters for row in rows(TableSetting(classes=classes))}
    assert found == {method: counts[column] for method, counts in COUNTS.items()}


def test_every_method_has_its_own_rank_until_one_is_given(paper: list[Row]) -> None:
    own = {"lora": 32, "lora_decoder": 32, "flap_sam": 32, "samed": 4, "samed_s": 4}
    assert {row.method: row.rank for row in paper if row.rank is not None} == own
    given = rows(TableSetting().changed(rank=8))
    assert {row.method: row.rank for row in given if row.rank is not None} == dict.fromkeys(own, 8)
    assert {row.method: row.trained_parameters for row in given}["samed"] == 8 * 36_864 + 6_220 + 3_902_195
    assert "rank of LoRA: 32 (lora, lora_decoder, flap_sam); 4 (samed, samed_s)." in text(paper)
    assert "rank of LoRA: 8 (lora, lora_decoder, flap_sam, samed, samed_s)." in text(given)


def test_a_given_method_is_counted_with_its_settings() -> None:
    """Two blocks of width 32 with two adapters each, R = 4: 4 * (2 * 32 + 2 * 32 * 4 + 3 * 16 + 4) = 1,488."""
    tiny = TableSetting(model=Sam(size="tiny", image_size=32), method=MaSam(width=4))
    found = {row.method: row.trained_parameters for row in rows(tiny)}
    assert found["ma_sam"] - found["decoder"] == 1_488
    ranked = replace(tiny, method=Samed(), lora=LoRA(rank=2))
    assert {row.method: row.rank for row in rows(ranked)}["samed"] == 2


def test_overheads_and_reductions_are_those_of_figure_1(paper: list[Row]) -> None:
    found = {row.method: (row.paper_overhead, row.paper_reduction) for row in paper}
    assert {method: found[method] for method in FIGURE_1} == FIGURE_1


def test_bytes_and_reduction_are_exact(paper: list[Row]) -> None:
    """4 bytes per parameter and direction; 90,532,927 / 1,846,384 = 49.03."""
    row = {row.method: row for row in paper}["flap_sam"]
    assert row.bytes_up == row.bytes_down == 4 * 1_846_384
    assert row.reduction == 90_532_927 / 1_846_384


@pytest.mark.parametrize("rank", [1, 64])
def test_lora_counts_grow_by_42752_per_rank(rank: int) -> None:
    found = {row.method: row.trained_parameters for row in rows(TableSetting(lora=LoRA(rank=rank)))}
    assert found["lora"] == 42_752 * rank
    assert found["flap_sam"] == 478_320 + 42_752 * rank


def test_json_has_the_documented_keys(paper: list[Row]) -> None:
    keys = {"method", "rank", "trained_parameters", "bytes_up", "bytes_down"}
    keys |= {"paper_overhead", "reduction", "paper_reduction"}
    content = json.loads(json.dumps([row.as_dict() for row in paper]))
    assert all(set(row) == keys for row in content)


def test_an_overhead_that_rounds_to_zero_has_no_paper_reduction() -> None:
    small = TableSetting(model=Sam(size="tiny", image_size=32), lora=LoRA(rank=1), rounds=1)
    assert [row.paper_reduction for row in rows(small)] == [None] * len(COUNTS)


def test_text_is_aligned_and_explains_itself(paper: list[Row]) -> None:
    lines = text(paper).splitlines()
    table = lines[: lines.index("")]
    assert len({len(line) for line in table}) == 1
    assert "90,532,927" in table[1]
    assert "* 32 * rounds / 2^30" in text(paper)
    assert "prints 2.8x" in lines[-1]


def test_no_note_on_the_paper_without_the_papers_figures() -> None:
    assert "prints 2.8x" not in text(rows(TableSetting(rounds=10)))


def test_the_command_line_changes_the_setting() -> None:
    setting = TableSetting().changed(model="sam-mini", image_size=64, classes=3, rank=4, rounds=10)
    assert setting == TableSetting(model=Sam(size="mini", image_size=64), classes=3, lora=LoRA(rank=4), rounds=10)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="unknown model 'sam-vit-g'"):
        TableSetting().changed(model="sam-vit-g")


@pytest.mark.parametrize("field", ["classes", "rounds"])
def test_numbers_below_one_are_errors(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
        TableSetting(**{field: 0})
