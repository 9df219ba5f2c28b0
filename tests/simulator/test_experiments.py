"""The file of experiments: which one is read, what it may hold, what extends what."""

from __future__ import annotations

from pathlib import Path

import pytest

from wardround.simulator.builder import ConfigError
from wardround.simulator.experiments import DOCUMENTATION, PACKAGED, ExperimentsFile, open_file
from wardround.simulator.sweeps.plan import VARIANT, make_plan


def file(**entries: dict[str, object]) -> ExperimentsFile:
    return ExperimentsFile(path=Path("f.yaml"), entries=entries)


def test_the_packaged_file_is_read_where_there_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_file().packaged
    assert {"quickstart", "tiny", "hippocampus"} <= open_file().entries.keys()


def test_a_file_in_the_current_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments.yaml").write_text("mine: {}\n")
    assert open_file().entries == {"mine": {}}
    assert not open_file().packaged


def test_a_file_that_is_named_comes_before_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments.yaml").write_text("mine: {}\n")
    Path("other.yaml").write_text("other: {}\n")
    assert list(open_file(Path("other.yaml")).entries) == ["other"]
    with pytest.raises(FileNotFoundError):
        open_file(Path("absent.yaml"))


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "''"])
def test_a_name_stays_in_the_folder_of_all_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(f"{name}: {{}}\n")
    with pytest.raises(ConfigError, match="expected a name without slashes"):
        open_file(path)


def test_every_problem_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("a: 3\n010: {}\nb: {purpose: [x], extends: 4}\n")
    with pytest.raises(ConfigError) as caught:
        open_file(path)
    assert caught.value.problems == (
        f"{path}: a: expected a mapping, got 3",
        f"{path}: 10: expected a text as name: put it in quotes",
        f"{path}: b.extends: expected a text, got 4",
        f"{path}: b.purpose: expected a text, got ['x']",
    )


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"e\.yaml: expected a mapping of experiments by name, got NoneType"):
        open_file(tmp_path / "e.yaml")


def test_layers_go_from_the_entry_to_what_it_extends() -> None:
    entries = file(a={"x": 1}, b={"extends": "a"}, c={"extends": "b", "x": 2})
    assert [name for name, _ in entries.layers("c")] == ["c", "b", "a"]
    assert entries.layers("c")[0][1] == {"extends": "b", "x": 2}


def test_a_circle_is_told() -> None:
    with pytest.raises(ConfigError, match=r"f.yaml: b.extends: .*go in a circle, got a -> b -> a"):
        file(a={"extends": "b"}, b={"extends": "a"}).layers("a")
    with pytest.raises(ConfigError, match=r"a.extends: .* got a -> a"):
        file(a={"extends": "a"}).layers("a")


def test_an_unknown_name_is_told_with_a_guess() -> None:
    with pytest.raises(
        ConfigError, match=r"f.yaml: no experiment 'quikstart', did you mean 'quickstart'\? \(known: quickstart\)"
    ):
        file(quickstart={}).layers("quikstart")
    with pytest.raises(ConfigError, match=r"f.yaml: a.extends: no experiment 'aa', did you mean 'a'\?"):
        file(a={"extends": "aa"}).layers("a")


def test_packaged_entries_are_documented() -> None:
    """Every entry opens with a comment that holds its command, and says what it is for and how long it takes."""
    text, file = PACKAGED.read_text(), open_file(PACKAGED)
    for name, entry in file.entries.items():
        comment = text[: text.index(f"\n{name}:\n")].rsplit("\n\n", 1)[-1].splitlines()
        command = "sweep" if name in file.sweeps else "run"
        assert all(line.startswith("#") for line in comment)
        assert any(line.partition("  --")[0].split()[:4] == ["#", "wardround", command, name] for line in comment)
        assert {"purpose", "expected_time"} <= entry.keys() & set(DOCUMENTATION)


def test_packaged_sweeps_have_a_plan_and_a_small_twin() -> None:
    """Every run of every sweep can be built, and a twin compares what its sweep compares, or a part of it."""
    file = open_file(PACKAGED)
    compared = {name: [v.name for v in make_plan(name, file).variants if v.role == VARIANT] for name in file.sweeps}
    large = {name for name in compared if not name.endswith("-small")} - {"sweep-tiny", "hippocampus-aggregators"}
    twins = {name: "fig1-small" if name == "fig1-kits" else f"{name}-small" for name in large}
    assert compared.keys() == {*large, *twins.values(), "sweep-tiny", "hippocampus-aggregators"}
    for name in large - {"hospitals", "cases"}:  # whose twins have fewer cases to deal
        twin = compared[twins[name]]
        assert [kept for kept in compared[name] if kept in twin] == twin


def test_sweeps_are_entries_that_have_one_or_extend_one_that_has() -> None:
    entries = file(a={}, s={"sweep": {"base": "a"}}, t={"extends": "s"}, broken={"extends": "nowhere"})
    assert entries.sweeps == ("s", "t")
