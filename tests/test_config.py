"""Merging YAML overlays, and mistakes in YAML files."""

import pytest

from repirl import config
from repirl.config import ConfigError

GRPO = {"class_path": "pkg.GRPO", "init_args": {"kl_coef": 0.1, "clip": 0.2}, "dict_kwargs": {"x": 1}}


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def two_lines(error):
    what, todo = str(error.value).split("\n")
    return what, todo


def test_mappings_merge_and_everything_else_is_replaced():
    base = {"a": {"x": 1, "y": [1, 2], "z": {"deep": 1}}, "b": 3}
    overlay = {"a": {"y": [9], "z": None, "new": {"k": 1}}}
    assert config.merge(base, overlay) == {"a": {"x": 1, "y": [9], "z": None, "new": {"k": 1}}, "b": 3}


def test_merge_leaves_its_arguments_alone():
    base, overlay = {"a": {"x": 1}, "m": dict(GRPO)}, {"a": {"x": 2}, "m": {"class_path": "pkg.RLOO"}}
    config.merge(base, overlay)
    assert base == {"a": {"x": 1}, "m": GRPO}
    assert overlay == {"a": {"x": 2}, "m": {"class_path": "pkg.RLOO"}}


def test_a_new_class_does_not_inherit_the_arguments_of_the_old_one():
    overlay = {"class_path": "pkg.RLOO", "init_args": {"clip": 0.3}}
    assert config.merge({"model": GRPO}, {"model": overlay}) == {"model": overlay}
    assert config.merge({"model": GRPO}, {"model": {"class_path": "pkg.RLOO"}}) == {"model": {"class_path": "pkg.RLOO"}}


@pytest.mark.parametrize("class_path", ["pkg.GRPO", "GRPO", None])
def test_the_same_class_keeps_its_arguments(class_path):
    overlay = {"init_args": {"clip": 0.3}} | ({"class_path": class_path} if class_path else {})
    merged = config.merge(GRPO, overlay)
    assert merged["init_args"] == {"kl_coef": 0.1, "clip": 0.3}
    assert merged["dict_kwargs"] == {"x": 1}


def test_the_short_public_name_is_the_same_class_as_its_full_path():
    base = {"class_path": "repirl.modules.repirl.RePIRL", "init_args": {"samples": 4}}
    assert config.merge(base, {"class_path": "repirl.RePIRL"})["init_args"] == {"samples": 4}


def test_two_classes_of_equal_name_in_different_modules_differ():
    assert "init_args" not in config.merge(GRPO, {"class_path": "other.GRPO"})


def test_files_merge_from_left_to_right_and_the_last_one_is_named(tmp_path):
    base = write(tmp_path, "base.yaml", "trainer:\n  max_steps: 1\n  devices: 1\n")
    over = write(tmp_path, "over.yaml", "\n\ntrainer: {max_steps: 2}\n")
    assert config.load([base, over]) == {"trainer": {"max_steps": 2, "devices": 1}}
    where = config.origins([base, over])
    assert where["trainer.max_steps"] == f"{over}:3"
    assert where["trainer.devices"] == f"{base}:3"


def test_numbers_survive_reading_and_writing(tmp_path):
    path = write(tmp_path, "a.yaml", "lr: 1e-5\ntext: '1e-5'\nday: 2024-01-02\nn: 3\nf: 2.\nbig: .inf\nname: v1.2.3\n")
    expected = {
        "lr": 1e-5,
        "text": "1e-5",
        "day": "2024-01-02",
        "n": 3,
        "f": 2.0,
        "big": float("inf"),
        "name": "v1.2.3",
    }
    loaded = config.load([path])
    assert loaded == expected
    assert isinstance(loaded["n"], int)
    assert config.load([write(tmp_path, "b.yaml", config.dump(loaded))]) == expected


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    write(tmp_path, "quickstart.yaml", "a: 1")
    with pytest.raises(ConfigError) as error:
        config.load([tmp_path / "quickstrat.yaml"])
    what, todo = two_lines(error)
    assert "quickstrat.yaml' does not exist" in what
    assert todo == f"did you mean {str(tmp_path / 'quickstart.yaml')!r}?"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: !!python/object:os.system x\n", 1, "not valid YAML"),
        ("- a\n- b\n", 1, "the top level is a list, not a mapping"),
        ("model:\n  lr: 1\n  kl: 2\n  lr: 3\n", 4, "key 'model.lr' is given twice, first in line 2"),
        ("l:\n  - {k: 1,\n     k: 2}\n", 3, "key 'l.0.k' is given twice, first in line 2"),
    ],
)
def test_a_bad_file_is_reported_with_its_line(tmp_path, text, line, what):
    path = write(tmp_path, "bad.yaml", text)
    with pytest.raises(ConfigError) as error:
        config.load([path])
    first, todo = two_lines(error)
    assert first.startswith(f"{path}:{line}: {what}")
    assert todo


def test_split_takes_every_form_of_config_out():
    argv = ["--config", "a", "fit", "-c", "b", "--x=1", "--config=c", "--y", "2"]
    assert config.split(argv) == (["a", "b", "c"], ["fit", "--x=1", "--y", "2"])
    with pytest.raises(ConfigError, match="--config has no value"):
        config.split(["fit", "--config"])


def test_overrides_are_read_in_both_forms():
    args = ["fit", "--a.b=1", "--c", "-2", "--print_config", "--d=", "--flag"]
    assert config.overrides(args) == [("a.b", "1"), ("c", "-2"), ("d", "")]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model", "pkg.RLOO", "model.class_path"),
        ("model.clip", 1, "model.init_args.clip"),
        ("model.init_args.clip", 1, "model.init_args.clip"),
        ("model.dict_kwargs.x", 1, "model.dict_kwargs.x"),
        ("trainer.max_steps", 1, "trainer.max_steps"),
    ],
)
def test_short_overrides_are_completed(key, value, expected):
    assert config.canonical({"model": GRPO, "trainer": {}}, key, value) == expected


def test_a_class_given_on_the_command_line_drops_the_old_arguments_from_the_files():
    files = {"model": GRPO, "trainer": {"max_steps": 1}}
    final = config.assign(files, "model.class_path", "pkg.RLOO")
    assert config.forget_replaced(files, final) == {"model": {"class_path": "pkg.RLOO"}, "trainer": {"max_steps": 1}}
    same = config.assign(files, "model.init_args.clip", 5)
    assert config.forget_replaced(files, same) == files


def test_output_is_one_key_for_all_that_a_run_writes(tmp_path):
    base = write(
        tmp_path,
        "base.yaml",
        "output: outputs/a\ntrainer: {max_steps: 1, callbacks: [{class_path: C, init_args: {path: '{output}/r.jsonl'}}]}\n",
    )
    given = config.merged(["fit", f"--config={base}"])
    trainer = given.files["trainer"]
    assert "output" not in given.files
    assert trainer["callbacks"][0]["init_args"]["path"] == "outputs/a/r.jsonl"
    assert trainer["default_root_dir"] == "outputs/a"
    assert [logger["init_args"]["save_dir"] for logger in trainer["logger"]] == ["outputs/a"] * 2
    for words in (["--output=b"], ["--output", "b"]):
        given = config.merged(["fit", "--config", str(base), *words, "--trainer.devices=1", "--model.path={output}/p"])
        assert given.rest == ["--trainer.devices=1", "--model.path=b/p"]
        assert given.files["trainer"]["callbacks"][0]["init_args"]["path"] == "b/r.jsonl"
    # Where a folder or loggers are named they stay; what does not train gets no loggers.
    own = write(tmp_path, "own.yaml", "trainer: {default_root_dir: here, logger: false}\n")
    trainer = config.merged(["fit", f"--config={base}", f"--config={own}"]).files["trainer"]
    assert (trainer["default_root_dir"], trainer["logger"]) == ("here", False)
    assert "logger" not in config.merged(["validate", f"--config={base}"]).files["trainer"]


def test_an_output_that_is_missing_or_no_folder_is_told(tmp_path):
    base = write(tmp_path, "base.yaml", "trainer: {callbacks: [{class_path: C, init_args: {path: '{output}/r'}}]}\n")
    with pytest.raises(ConfigError) as error:
        config.merged(["fit", f"--config={base}"])
    what, todo = two_lines(error)
    assert what == "'{output}' is used, and there is no output"
    assert "output: outputs/my_run" in todo
    with pytest.raises(ConfigError, match=r"output is 3 \(command line\)"):
        config.merged(["fit", f"--config={base}", "--output=3"])
