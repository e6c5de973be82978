"""safetensors headers are read without trust; the reference implementation is the oracle."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zeitgeist.checkpoints import TensorSpec
from zeitgeist.checkpoints.header import CODES, DTYPES, build_header, parse_header, read_header
from zeitgeist.errors import CheckpointInvalid

SHARED_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100
)


def entry(dtype: str = "F32", shape: Sequence[Any] = (2,), span: Sequence[Any] = (0, 8)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def encode(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def write(path: Path, header: object, data_bytes: int) -> Path:
    path.write_bytes(encode(header) + bytes(data_bytes))
    return path


# Tuples, not TensorSpec: beartype's checks draw random numbers, which hypothesis forbids in here.
fields_strategy = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda s: s != "__metadata__"),
        st.sampled_from(sorted(CODES, key=str)),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
    ),
    max_size=6,
    unique_by=lambda fields: fields[0],
)


@SHARED_FOLDER
@given(fields=fields_strategy)
def test_the_reference_implementation_reads_what_is_built(
    tmp_path: Path, fields: list[tuple[str, torch.dtype, tuple[int, ...]]]
) -> None:
    path = tmp_path / "built.safetensors"
    # The reference wants wider elements first, as its own writer puts them.
    specs = sorted((TensorSpec(*f) for f in fields), key=lambda spec: -spec.dtype.itemsize)
    head = build_header(specs, {"format": "pt"})
    path.write_bytes(head + bytes(sum(spec.nbytes for spec in specs)))
    assert len(head) % 8 == 0
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {spec.name for spec in specs}
        assert file.metadata() == {"format": "pt"}
        for spec in specs:
            tensor = file.get_tensor(spec.name)
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape)
    ours = read_header(path)
    assert list(ours.specs.values()) == sorted(
        specs, key=lambda spec: (ours.spans[spec.name], specs.index(spec))
    )
    assert ours.metadata == {"format": "pt"}


@SHARED_FOLDER
@given(fields=fields_strategy)
def test_what_the_reference_implementation_writes_is_read(
    tmp_path: Path, fields: list[tuple[str, torch.dtype, tuple[int, ...]]]
) -> None:
    path = tmp_path / "saved.safetensors"
    specs = [TensorSpec(*f) for f in fields]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        spec.name: torch.randint(0, 2, (spec.nbytes,), generator=generator, dtype=torch.uint8)
        .view(spec.dtype)
        .reshape(spec.shape)
        for spec in specs
    }
    save_file(tensors, path)
    header = read_header(path)
    assert header.specs == {spec.name: spec for spec in specs}
    content = path.read_bytes()
    for name, (start, stop) in header.spans.items():
        raw = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content[start:stop] == raw


def test_every_dtype_of_a_plain_model_is_known() -> None:
    assert {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "BOOL"} <= DTYPES.keys()
    assert {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)} <= DTYPES.keys()


def test_a_scalar_and_an_empty_tensor_have_their_sizes() -> None:
    assert TensorSpec("scalar", torch.float32, ()).nbytes == 4
    assert TensorSpec("empty", torch.float32, (3, 0, 5)).nbytes == 0


DAMAGE: dict[str, tuple[object, int, str]] = {
    "truncated": ({"a": entry()}, 7, "'a' ends at byte 8.*only 7.*truncated"),
    "beyond": ({"a": entry()}, 9, "1 bytes after the last tensor 'a'"),
    "no tensor at all": ({}, 4, "4 bytes after"),
    "overlap": (
        {"a": entry(), "b": entry(span=(4, 12))},
        12,
        "'b' overlaps the tensor 'a'",
    ),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 8, "overlaps"),
    "hole": ({"a": entry(), "b": entry(span=(12, 20))}, 20, "4 bytes before the tensor 'b'"),
    "hole at the start": ({"a": entry(span=(4, 12))}, 12, "4 bytes before the tensor 'a'"),
    "size": ({"a": entry(shape=(3,))}, 8, "'a' takes 8 bytes.*needs 12"),
    "dtype": ({"a": entry("F4")}, 8, "'a' has the dtype 'F4'.*dequantised"),
    "dtype of a wrong type": ({"a": entry([])}, 8, "'a' has the dtype"),  # type: ignore[arg-type]
    "negative size": ({"a": entry(shape=(-2,))}, 8, "'a' has the shape"),
    "size that is a truth value": ({"a": entry(shape=(True, 2))}, 8, "'a' has the shape"),
    "fractional size": ({"a": entry(shape=(2.0,))}, 8, "'a' has the shape"),
    "huge size": ({"a": entry(shape=(2**62, 2**62))}, 8, "'a' takes 8 bytes"),
    "reversed": ({"a": entry(span=(8, 0))}, 8, "'a' has the data_offsets"),
    "three offsets": ({"a": entry(span=(0, 4, 8))}, 8, "'a' has the data_offsets"),
    "no fields": ({"a": {}}, 0, "'a' has no dtype"),
    "no object": ({"a": 3}, 0, "'a' has no dtype"),
    "twice": (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), 8, "names 'a' twice"),
    "a list": ([], 0, "no JSON object"),
    "no JSON": (b"{", 0, "no JSON"),
    "no text": (b"\xff\xfe", 0, "no JSON"),
    "deep": (b"[" * 100_000, 0, "no JSON"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "no map of strings"),
    "list of metadata": ({"__metadata__": []}, 0, "no map of strings"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_named_with_its_file(tmp_path: Path, kind: str) -> None:
    header, data_bytes, message = DAMAGE[kind]
    path = write(tmp_path / "x.safetensors", header, data_bytes)
    with pytest.raises(CheckpointInvalid, match=message) as caught:
        read_header(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.mend


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too few"),
        (b"1234567", "7 bytes, too few"),
        (struct.pack("<Q", 2**63), "claims 9223372036854775808 bytes, more than"),
        (struct.pack("<Q", 50) + b"{}", "claims 50 bytes but the file ends after 10"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "."),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=message):
        read_header(path)


number = st.one_of(st.integers(-2, 12), st.sampled_from([2**63, 2**64 + 4, 1.5, True, None, "4"]))
field = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F3", "", 7]),
        "shape": st.one_of(st.lists(st.integers(0, 3), max_size=2), st.lists(number, max_size=2)),
        "data_offsets": st.one_of(
            st.lists(st.integers(0, 12), min_size=2, max_size=2), st.lists(number, max_size=3)
        ),
    }
)


@SHARED_FOLDER
@given(
    header=st.dictionaries(st.sampled_from("abc"), field, max_size=3), data_bytes=st.integers(0, 16)
)
def test_whatever_the_reference_implementation_refuses_is_refused(
    tmp_path: Path, header: dict[str, Any], data_bytes: int
) -> None:
    path = write(tmp_path / "fuzzed.safetensors", header, data_bytes)
    try:
        with safe_open(path, framework="pt"):
            accepted = True
    except SafetensorError:
        accepted = False
    if accepted:
        assert read_header(path).specs.keys() == header.keys()
    else:
        with pytest.raises(CheckpointInvalid):
            read_header(path)


@SHARED_FOLDER
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_one_wrong_byte_in_a_header_is_no_crash(tmp_path: Path, position: int, value: int) -> None:
    text = build_header(
        [TensorSpec("a", torch.float32, (2, 3)), TensorSpec("b", torch.int8, ())], {}
    )
    changed = bytearray(text[8:])
    changed[position % len(changed)] = value
    try:
        parse_header(bytes(changed), data_bytes=25, path=tmp_path / "x")
    except CheckpointInvalid as error:
        assert str(tmp_path / "x") in str(error)
