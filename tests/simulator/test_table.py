"""The table of methods: FLAP-SAM's counts and figures, exactly."""

import json
import re
from dataclasses import dataclass, replace

import pytest

from wardround.aggregators.contract import Layout
from wardround.aggregators.scheduled import Draw
from wardround.clients.lora import LoRA
from wardround.clients.methods import METHODS, Attention, Dvpt, LoraOnly, MaSam, Samed, Sba, UnionOf, VptDeep
from wardround.clients.network import Network
from wardround.clients.sam import Sam
from wardround.clients.vit import Vit
from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.table import Row, TableSetting, known_classes, rows, text

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
    keys = {"method", "rank", "trained_parameters", "parameters_per_round", "bytes_up", "bytes_down"}
    keys |= {"paper_overhead", "reduction", "paper_reduction"}
    for found in (paper, rows(TableSetting(model=VIT, classes=8))):
        content = json.loads(json.dumps([row.as_dict() for row in found]))
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
    assert setting == TableSetting(model=Sam(size="mini", image_size=64), classes=3, rank=4, rounds=10)


def test_the_command_line_goes_from_one_model_to_the_other() -> None:
    """The image size of another model is the papers'; of the same one it stays, as its other settings do."""
    assert TableSetting().changed(model="vit-s16").model == Vit(size="s16", image_size=224)
    read = Sam(size="mini", image_size=64, weights="sam-mini", upscaler="sam", heads="checkpoint")
    setting = TableSetting(model=read)
    assert setting.changed().model == replace(read, weights="random", heads="new")
    assert setting.changed(model="sam-vit-l", image_size=128).model == Sam(size="vit-l", image_size=128, upscaler="sam")
    absent = TableSetting(model=Vit(size="mini", image_size=32, weights="/nowhere", pretrained_on=("medmnist",)))
    assert absent.changed().model == Vit(size="mini", image_size=32)


# ---- the Vision Transformer ------------------------------------------------------------------------------------------

VIT = Vit(size="b16", image_size=224)
VIT_COUNTS = {  # without the head, which is 768 C + C; LoRA at rank 32, DVPT at 4, ten prompts, bottlenecks of 64
    "full": 85_798_656,
    "attention": 28_348_416,
    "lora": 18_432 * 2 * 32,
    "linear": 0,
    "bias": 102_912,
    "sba": 28_348_416,
    "vpt_shallow": 7_680,
    "vpt_deep": 92_160,
    "dvpt": 12 * 4 * (10 + 768),
    "lora_vpt": 18_432 * 2 * 32 + 92_160,
    "adapter": 12 * (2 * 768 * 64 + 64 + 768),
}


def test_rows_of_a_vit_are_the_methods_that_suit_it_and_count_the_head() -> None:
    found = {row.method: row.trained_parameters for row in rows(TableSetting(model=VIT, classes=8))}
    assert found == {method: number + 6_152 for method, number in VIT_COUNTS.items()}


def test_one_block_of_sba_is_sent_in_a_round() -> None:
    """2,362,368 + 6,152 parameters; where every hospital draws for itself, what others trained comes down as well."""
    setting = TableSetting(model=VIT, classes=8)
    shared = {row.method: row for row in rows(setting)}["sba"]
    assert (shared.parameters_per_round, shared.bytes_up, shared.bytes_down) == (2_368_520, 9_474_080, 9_474_080)
    assert shared.reduction == (85_798_656 + 6_152) / 2_368_520
    own = {row.method: row for row in rows(replace(setting, method=Sba(draw="per_client")))}["sba"]
    assert (own.bytes_up, own.bytes_down) == (9_474_080, 4 * (28_348_416 + 6_152))


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        ("{name: medmnist, flag: bloodmnist}", 8),
        ("{name: medmnist, flag: organcmnist}", 11),
        ("ham10000", 7),
        ("fed_isic2019", 8),
        ("{name: images, classes: [x, y, z]}", 3),
        ("images", None),
    ],
)
def test_image_data_sets_know_their_classes_without_being_read(data: str, classes: int | None) -> None:
    experiment = load_experiment("vit-tiny", open_file(PACKAGED), [f"data={data}"])
    assert known_classes(experiment) == classes
    assert TableSetting.of(experiment).classes == (classes or 2)


@dataclass(frozen=True, kw_only=True)
class OwnDraw(Attention):
    """A method of one's own: every hospital draws for itself, the one half of the tensors or the other."""

    draw: Draw = "per_client"

    def attach(self, model: Network) -> Layout:
        layout = super().attach(model)
        own = [name for name in layout.names if layout.part[name] != "head"]
        return replace(layout, groups=(tuple(own[::2]), tuple(own[1::2])))


def test_any_method_that_draws_per_hospital_is_sent_all_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "own_draw", OwnDraw)
    setting = TableSetting(model=VIT, classes=8, method=OwnDraw())
    [row] = [row for row in rows(setting) if row.method == "own_draw"]
    assert row.bytes_up < row.bytes_down == 4 * (28_348_416 + 6_152)


def test_a_union_has_a_row_where_it_was_asked_for() -> None:
    tiny = TableSetting(model=Vit(size="tiny", image_size=32), classes=3)
    assert "union" not in {row.method for row in rows(tiny)}
    given = {row.method: row for row in rows(replace(tiny, method=UnionOf(of=(LoraOnly(), VptDeep()))))}
    assert given["union"].trained_parameters == given["lora_vpt"].trained_parameters
    assert given["union"].rank == 32


def test_a_rank_is_that_of_all_pairs() -> None:
    """Per block 12 r (T + 768), with a shared basis r (12 T + 768), at r = 8 and T = 10."""
    found = {row.method: row for row in rows(TableSetting(model=VIT, classes=8).changed(rank=8))}
    assert {name: row.rank for name, row in found.items() if row.rank} == {"lora": 8, "lora_vpt": 8, "dvpt": 8}
    assert found["dvpt"].trained_parameters == 12 * 8 * 778 + 6_152
    shared = replace(TableSetting(model=VIT, classes=8), method=Dvpt(form="shared_basis"), rank=8)
    assert {row.method: row.trained_parameters for row in rows(shared)}["dvpt"] == 8 * (120 + 768) + 6_152


def test_the_text_of_a_vit_has_no_figures_of_the_paper_on_sam() -> None:
    found = rows(TableSetting(model=VIT, classes=8))
    assert all(row.paper_overhead is row.paper_reduction is None for row in found)
    written = text(found)
    header = ["method", "parameters", "per round", "bytes up", "bytes down", "reduction"]
    assert re.split("  +", written.splitlines()[0]) == header
    assert "overhead" not in written
    assert "rank of LoRA and low-rank prompts: 32 (lora, lora_vpt); 4 (dvpt)." in written


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="unknown model 'sam-vit-g'"):
        TableSetting().changed(model="sam-vit-g")


def test_a_classifier_has_two_classes_or_more() -> None:
    with pytest.raises(ValueError, match="classes: expected at least 2, as a classifier tells them apart, got 1"):
        TableSetting().changed(model="vit-b16", classes=1)
    assert TableSetting().changed(classes=1).classes == 1


def test_a_rank_that_prompts_cannot_have_is_their_largest() -> None:
    """Ten prompts of a block have ten directions. A method of one's own says what is wrong with it."""
    setting = TableSetting(model=VIT, classes=8, rank=32)
    assert {row.method: row.rank for row in rows(setting) if row.rank} == {"lora": 32, "lora_vpt": 32, "dvpt": 10}
    with pytest.raises(ValueError, match=r"method.rank: expected at most 10"):
        rows(replace(setting, method=Dvpt()))


@pytest.mark.parametrize("field", ["classes", "rank", "rounds"])
def test_numbers_below_one_are_errors(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
        TableSetting(**{field: 0})
