"""Writes the tables of units and currencies that the math verifier reads, from pint and from Babel (CLDR).

    pip install pint==0.25.3 babel==2.19.0
    python benchmarks/math_unit_tables.py src/repirl/verifiers/reading

The tables are part of the package, since loading pint takes half a second and a table of names takes a millisecond.
"""

import argparse
import re
from pathlib import Path

import babel.numbers
import pint
from babel.core import get_global
from babel.localedata import load

# Of pint's definitions: constants, duplicates by country or measurement, and what is a number here rather than a unit.
LEFT_OUT = re.compile(
    r"constant|atomic_unit|planck|conventional|mean_international|US_international|H2O|_Hg|^ab(?=[a-z])|percent|permille"
    r"|^ppm$|strain|^delta_|decade|octave|_quarter|^quarter|fifth|^semi|^super|electron_g|unit_pole|tex$|^css_|dpi$|ppi$|ppcm$"
)
SIGNS = "$£¥₹€₩₽₺₫₱₦₪₴₡₲₵₸₼₾₿"


def unit_lines() -> list[str]:
    """Name, spellings, factor and root units, a line each."""
    registry = pint.UnitRegistry()
    constants = (Path(pint.__file__).with_name("constants_en.txt")).read_text(encoding="utf-8")
    named = set(re.findall(r"^(\w+) *=", constants, re.MULTILINE))
    lines = ["# name\tspellings\tfactor\troot units"]
    for key, unit in registry._units.items():
        if (
            key != unit.name
            or (key in named and "atmosphere" not in key)
            or LEFT_OUT.search(key)
            or not key.replace("_", "").isalpha()
        ):
            continue
        symbol = (unit.defined_symbol,) if unit.defined_symbol else ()
        spellings = dict.fromkeys(name for name in (*symbol, *unit.aliases) if not re.search(r"\d", name))
        if "degree_" in key and unit.reference == registry.UnitsContainer({"kelvin": 1}):
            factor, roots = 1.0, {key: 1}  # with an offset of its own, hence no multiple of a kelvin
        else:
            factor, root = registry.get_root_units(key)
            roots = dict(root._units)
        if any(power != int(power) for power in roots.values()):
            continue
        dimensions = " ".join(f"{name}^{int(power)}" for name, power in sorted(roots.items()))
        lines.append(f"{key}\t{' '.join(spellings)}\t{float(factor):.10g}\t{dimensions}")
    prefixes = {prefix.name: prefix for prefix in registry._prefixes.values() if prefix.name}
    for name, prefix in prefixes.items():
        if name not in ("semi", "sesqui"):
            symbols = [s for s in (prefix.defined_symbol, *prefix.aliases) if s and s not in ("mu", "mc")]
            lines.append(f"{name}-\t{' '.join(symbols)}\t{float(prefix.value):.10g}\t")
    return lines


def currency_lines() -> list[str]:
    """Code, signs and names in English, a line each, of the currencies in use."""
    in_use = {
        code
        for entries in get_global("territory_currencies").values()
        for code, _, end, tender in entries
        if end is None and tender
    }
    data = load("en")
    lines = ["# code\tsigns\tnames"]
    for code in sorted(in_use):
        symbol = babel.numbers.get_currency_symbol(code, locale="en")
        names = {babel.numbers.get_currency_name(code, count=count, locale="en") for count in (1, 2)}
        native = {
            load(locale)["currency_symbols"].get(code, "") for locale in ("en", "ru", "tr", "uk", "hi", "vi", "ko")
        }
        signs = {s for s in (symbol, *native) if s and s != code and len(s) <= 4}
        signs |= {sign for sign in SIGNS if any(sign in known for known in signs)}
        lines.append(f"{code}\t{' '.join(sorted(signs))}\t{'; '.join(sorted(names))}")
    assert data["currency_symbols"]
    return lines


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, lines in (("units.tsv", unit_lines()), ("currencies.tsv", currency_lines())):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
