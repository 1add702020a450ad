"""Rust's v0 names: as the RFC and rustc's own tools write them, and nothing a hostile name can do."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.symbols import rust, rustreader
from tracer.symbols.demangle import demangle
from tracer.symbols.rust import demangle_v0

PROGRAM = """
pub mod m\u00f3dulo { pub fn gr\u00f6\u00dfe<T: std::fmt::Debug>(x: T) -> String { format!("{:?}", x) } }
pub trait Shape { fn area(&self) -> f64; fn scaled<F: Fn(f64) -> f64>(&self, f: F) -> f64 where Self: Sized; }
pub struct Sq<const N: usize, const C: char, const B: bool, const I: i32>;
impl<const N: usize, const C: char, const B: bool, const I: i32> Shape for Sq<N, C, B, I> {
    #[inline(never)] fn area(&self) -> f64 { (N + C as usize + B as usize) as f64 + I as f64 }
    #[inline(never)] fn scaled<F: Fn(f64) -> f64>(&self, f: F) -> f64 { f(self.area()) }
}
#[inline(never)] pub fn many<T: ?Sized>() -> usize { std::any::type_name::<T>().len() }
pub struct S<T>(T);
impl<T> S<T> { #[inline(never)] pub fn go(&self) -> usize { let c = |x: usize| { let d = move || x + 1; d() }; c(3) } }
fn main() {
    println!("{}", m\u00f3dulo::gr\u00f6\u00dfe(Some([1u8; 3])));
    println!("{}", Sq::<7, 'x', true, -3>.scaled(|x| x * 2.0));
    println!("{}", many::<fn(u8, *const i8, *mut str) -> !>() + many::<unsafe extern "C" fn(i32)>());
    println!("{}", many::<for<'a, 'b> fn(&'a u8, &'b mut &'a [i128; 4]) -> &'b ()>() + many::<(u8,)>());
    println!("{}", many::<Box<dyn for<'x> Fn(&'x u8) -> Box<dyn std::fmt::Debug + 'x> + Send>>());
    println!("{}", many::<dyn Iterator<Item = (u8, &'static str)>>() + S(vec![Box::new(1u64)]).go());
}
"""


@pytest.mark.parametrize(
    ("mangled", "expected"),
    [
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("_RNCNvC4main4mains_0B3_", "main::main::{closure#1}"),
        ("_RNSNvC4main4main3fooB3_", "main::main::{shim:foo#0}"),
        ("_RNvMs_NtCs1234_7mycrate3fooINtB4_3BarmE3new", "<mycrate::foo::Bar<u32>>::new"),
        ("_RNvXC1aNtB2_1SNtC1t1T1f", "<a::S as t::T>::f"),
        ("_RNvYNvC1a1bNtC1c1d1e", "<a::b as c::d>::e"),
        ("_RINvC1a1fFG_RL0_hEuE", "a::f::<for<'a> fn(&'a u8)>"),
        ("_RINvC1a1fFUKCRhQhEtE", 'a::f::<unsafe extern "C" fn(&u8, &mut u8) -> u16>'),
        ("_RINvC1a1fTheEThESeAhj3_PhOhE", "a::f::<(u8, str), (u8,), [str], [u8; 3], *const u8, *mut u8>"),
        ("_RINvC1a1fDNtC1t1Tp1AhEL_E", "a::f::<dyn t::T<A = u8>>"),
        ("_RINvC1a1fDINtC1t1ThEp1AhNtBb_1UEL_E", "a::f::<dyn t::T<u8, A = u8> + t::U>"),
        (
            "_RINvC1a1fKj7b_Kb1_Kc27_Kln3_KpKnffffffffffffffffff_E",
            "a::f::<123, true, '\\'', -3, _, 0xffffffffffffffffff>",
        ),
        ("_RINvC1a1fKRe616263_E", 'a::f::<"abc">'),
        ("_RINvC1a1fKe616263_KRj1_KAj1_j2_EE", 'a::f::<{*"abc"}, {&1}, {[1, 2]}>'),
        ("_RINvC1a1fKVNtC1b1STj1_EKVNtC1b1SS1xj1_EKVNtC1b1SUE", "a::f::<{b::S(1)}, {b::S { x: 1 }}, {b::S}>"),
        ("_RINvC1a1fKTj1_EKQj1_E", "a::f::<{(1,)}, {&mut 1}>"),
        ("_RINvC1a1fWjRj1_j9_E", "a::f::<usize is 1..=9>"),
        ("_RNqCs4fqI2P2rA04_11utf8_identsu30____7hkackfecea1cbdathfdh9hlq6y", "utf8_idents::საჭმელად_გემრიელი_სადილი"),
        ("_RNvC1au3___1", "a::punycode{__1}"),
        ("_RNvC3foo3barC4user", "foo::bar"),
        ("_RNvC3foo3bar.llvm.9D1C9369@@16", "foo::bar"),
        ("_RNvC3foo3bar.cold", "foo::bar.cold"),
    ],
)
def test_names_are_demangled(mangled: str, expected: str) -> None:
    assert demangle_v0(mangled) == expected
    assert demangle(mangled.encode()) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", "_R", "_Rx", "_RNvC1a", "_RNvC9a1b", "_RNvC1a1b junk\n", "_RNvB0_1b", "_R1NvC1a1b", "_RC1\u00e4"),
        *("_RNvC1a1bB", "_RINvC1a1fL0_E", "_RINvC1a1fKc110000_E", "_RINvC1a1fKb2_E", "_RINvC1a1fKeff_E"),
        *("_RINvC1a1fDE", "_RINvC1a1fG", "_RC1a" + "x" * rust.MAX_NAME, "_RNvC1a01b2", "_RINvC1a1fKVNtC1b1SXE"),
        "_RINvC1a1fWjX",
    ],
)
def test_what_is_no_name_stays_as_it_is(name: str) -> None:
    assert demangle_v0(name) is None
    assert demangle(name.encode()) == name.replace("\n", "\\x0a")


@pytest.mark.skipif(not shutil.which("rustc"), reason="rustc is not installed")
@pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt is not installed")
def test_a_whole_program_as_cxxfilt_writes_it(tmp_path: Path) -> None:
    (tmp_path / "p.rs").write_text(PROGRAM)
    command = ["rustc", "-C", "symbol-mangling-version=v0", "-o", "p", "p.rs"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("rustc cannot compile a program here")
    lines = subprocess.run(["nm", "p"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    # c++filt leaves suffixes out; a crate's hash and constants' types it prints.
    names = sorted({re.sub(r"[.$].*", "", line.split()[-1]) for line in lines if " _R" in line})
    filtered = subprocess.run(
        ["c++filt", "-s", "rust"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if filtered == names:
        pytest.skip("this c++filt does not know v0 names")
    plain = [re.sub(r"(?<=\w)\[[0-9a-f]+\]", "", name) for name in filtered]
    plain = [re.sub(r"(?<=[\w'])(: (?:[iu](?:8|16|32|64|128|size)|bool|char))(?=[\]>,])", "", name) for name in plain]
    assert [demangle_v0(name) for name in names] == plain
    assert len(names) > 100


def doubling(levels: int) -> str:
    """Each level is a tuple of the level before, twice."""
    text = "INvC1a1fTuuE"
    at = 8  # where the first tuple stands
    for _ in range(levels):
        here = len(text)
        digits = "_" if at == 0 else base62(at - 1) + "_"
        text += f"TB{digits}B{digits}E"
        at = here
    return "_R" + text + "E"


def base62(value: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return digits[value] if value < 62 else base62(value // 62) + digits[value % 62]


def test_exponential_names_are_bounded() -> None:
    start = time.monotonic()
    assert (
        demangle_v0(doubling(2))
        == "a::f::<((), ()), (((), ()), ((), ())), ((((), ()), ((), ())), (((), ()), ((), ())))>"
    )
    for levels in range(3, 60):
        found = demangle_v0(doubling(levels))
        assert found is None or len(found) <= rustreader.MAX_OUTPUT + 64
    assert time.monotonic() - start < 20  # For ever, where the bound is missing.


@pytest.mark.parametrize(
    "unit", ["R", "T", "N", "Nv", "I", "S", "F", "M", "X", "Y", "D", "INv", "W", "KA", "IC1aKA", "FG"]
)
def test_deep_names_are_refused(unit: str) -> None:
    name = "_R" + unit * (4000 // len(unit))
    assert demangle_v0(name) is None
    assert demangle_v0("_RINvC1a1f" + name[2:]) is None


@settings(max_examples=300, deadline=None)
@given(st.text("_RNvCIMXYBTEKLGDFSAPOQRWspu0123456789abcefhjmno.", max_size=120))
def test_noise_does_no_harm(text: str) -> None:
    for name in ("_R" + text, "_RINvC1a1f" + text + "E", "_RNv" + text + "1x"):
        found = demangle_v0(name)
        assert found is None or len(found) <= rustreader.MAX_OUTPUT + rust.MAX_NAME
