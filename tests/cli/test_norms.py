"""``zeitgeist norms`` on real files: for people, for programs, pictures, and bad input."""

import json

import pytest

from zeitgeist.cli import main


def test_a_table_of_every_tensor(capsys, tiny_family):
    main(["norms", str(tiny_family.base), str(tiny_family.experts[0])])
    out = capsys.readouterr().out
    assert "rms_spectral" in out and "stable rank" in out
    assert "model.layers.1.mlp.down_proj.weight" in out
    plain = out
    main(["norms", str(tiny_family.base), str(tiny_family.experts[0]), "--dual"])
    assert capsys.readouterr().out != plain


def test_a_report_for_programs_and_a_picture(capsys, tiny_family, tmp_path):
    words = [str(tiny_family.base), str(tiny_family.experts[1]), "--norms", "spectral,row_l2"]
    main(["norms", *words, "--json", "-o", str(tmp_path / "n.png")])
    told = json.loads(capsys.readouterr().out)
    matrix = next(each for each in told if len(each["shape"]) == 2)
    assert matrix["norms"].keys() == {"spectral", "row_l2"} and matrix["histogram"]
    assert (tmp_path / "n.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_model_twice(capsys, tiny_family, tmp_path):
    main(["norms", str(tiny_family.base), str(tiny_family.base), "-o", str(tmp_path / "n.svg")])
    assert " 0 " in capsys.readouterr().out and (tmp_path / "n.svg").exists()


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
