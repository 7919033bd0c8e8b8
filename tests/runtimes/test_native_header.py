"""What Python declares of the library is what `qsd.h` declares."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from qsdformer.runtimes import native
from runtimes.conftest import SETS

HEADER = (Path(__file__).parents[2] / "native/include/qsd.h").read_text("utf-8")
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
TYPES = {"int": ctypes.c_int, "uint64_t": ctypes.c_uint64, "const char *": ctypes.c_char_p}
STRUCTURES = {
    "qsd_options": native._Options,
    "qsd_info": native._Info,
    "qsd_value": native._Value,
    "qsd_activity": native._Activity,
}


def declared(structure: str) -> list[tuple[str, type]]:
    """Names and types of the fields of a structure of the header, in order."""
    [body] = re.findall(rf"typedef struct {structure} {{(.*?)}} {structure};", CODE, re.DOTALL)
    fields = []
    for line in filter(None, (line.strip() for line in body.split(";"))):
        kind, names = re.fullmatch(r"(int|uint64_t|const char \*)\s*(.*)", line).groups()
        fields += [(name.strip(), TYPES[kind]) for name in names.split(",")]
    return fields


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_have_the_fields_of_the_header(structure: str):
    assert list(STRUCTURES[structure]._fields_) == declared(structure)


def test_no_structure_of_the_header_is_forgotten():
    assert set(re.findall(r"typedef struct (\w+) {", CODE)) == set(STRUCTURES)


def test_the_version_of_the_interface_is_that_of_the_header():
    assert int(re.search(r"#define QSD_ABI (\d+)", CODE)[1]) == native.ABI


def test_every_instruction_set_is_named_where_it_is_asked_for():
    names = {name.partition(" ")[0] for name in SETS}
    [comment] = re.findall(r"const char \*isa; +/\*(.*?)\*/", HEADER)
    assert set(re.findall(r'"(\w+)"', comment)) == names
    [listed] = re.findall(r"the instruction set: (.*?)\.\n", native.__doc__, re.DOTALL)
    assert set(re.findall(r"\w+", listed)) - {"or"} == names


@pytest.mark.skipif(not native.available(), reason="the native engine was not built")
def test_functions_take_as_many_arguments_as_in_the_header():
    library = native.library()
    functions = re.findall(r"QSD_API [\w ]+?\*?(qsd_\w+)\(([^)]*)\)", CODE)
    assert len(functions) >= 9
    for name, arguments in functions:
        types = getattr(library, name).argtypes
        if name not in ("qsd_abi", "qsd_class_name"):  # which take nothing, and what C makes of it
            assert types is not None, name
            assert len(types) == len(arguments.split(",")), name
