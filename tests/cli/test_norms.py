"""``zeitgeist norms`` on real files: for people, for programs, pictures, and bad input."""

import json

import pytest

from zeitgeist.cli import main


def run(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["norms", *map(str, words)])
    assert not left.value.code
    return capsys.readouterr().out


def test_a_table_of_every_tensor(capsys, tiny_family):
    models = tiny_family.base, tiny_family.experts[0]
    out = run(capsys, *models)
    assert "rms_spectral" in out and "stable rank" in out
    assert "model.layers.1.mlp.down_proj.weight" in out
    assert run(capsys, *models, "--dual") != out


def test_a_report_for_programs_and_a_picture(capsys, tiny_family, tmp_path):
    words = [tiny_family.base, tiny_family.experts[1], "--norms", "spectral,row_l2"]
    told = json.loads(run(capsys, *words, "--json", "-o", tmp_path / "n.png"))
    matrix = next(each for each in told["tensors"] if len(each["shape"]) == 2)
    assert matrix["norms"].keys() == {"spectral", "row_l2"} and matrix["histogram"]
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_model_twice(capsys, tiny_family, tmp_path):
    out = run(capsys, tiny_family.base, tiny_family.base, "-o", tmp_path / "n.svg")
    assert " 0 " in out and "note: nothing differs" in out and (tmp_path / "n.svg").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (["--norms", "nuclear"], "there is no norm 'nuclear'"),
        (["--norms", ","], "there is no norm ''"),
        (["-o", "n.gif"], "is no .png or .svg"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tiny_family, words, told):
    with pytest.raises(SystemExit) as left:
        main(["norms", str(tiny_family.base), str(tiny_family.experts[0]), *words])
    assert left.value.code == 2 and told in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys, tiny_family):
    with pytest.raises(SystemExit) as left:
        main(["norms", str(tiny_family.base), "nowhere"])
    assert left.value.code == 2 and "nowhere" in capsys.readouterr().err
