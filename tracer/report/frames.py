"""Stacks as people read them: which frames say nothing, which one to look at first, and names of bearable length.

Pure functions of frames. The whole stack with whole names stays in the report (and in JSON); this is for the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from tracer.model.report import Frame

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

# Files that are nothing but an allocator.
_ALLOCATOR_MODULE = re.compile(r"lib(jemalloc|tcmalloc|mimalloc|hoard|scudo|snmalloc|rpmalloc)[\w.-]*\.so[\w.]*")
# Files in whose inner functions, which have no name, nobody's leak is.
_BASE_MODULE = re.compile(
    r"(libc|libstdc\+\+|libc\+\+|libgcc_s|libpthread|ld-linux[\w-]*|ld-musl-[\w]*)[-.\w]*\.so[\w.]*"
)
_C_ALLOC = r"(?:m|c|re|v|pv)alloc|reallocarray|reallocf|memalign|aligned_alloc|posix_memalign"
# The functions of an allocator, inside and out: glibc, musl, jemalloc, tcmalloc, mimalloc, Rust's.
_ALLOCATOR = re.compile(
    rf"(?:__libc_|__GI___libc_|__GI_|__)?(?:{_C_ALLOC})(?:_impl)?"
    r"|_int_(?:malloc|realloc|memalign)|_mid_memalign|sysmalloc\w*|sysmadvise_thp|tcache_\w+|malloc_(?:hook_ini|consolidate)"
    r"|realloc_hook_ini|arena_get\w*|(?:alloc_)?new_heap|grow_heap|ptmalloc_init\w*|(?:__default_|__glibc_)?morecore"
    r"|(?:_rjem_)?je_\w+|_rjem_\w+|mallocx|rallocx|(?:tc|tcmalloc|do_tc)_\w*(?:alloc|new)\w*|tcmalloc::.*|_?mi_\w+"
    r"|(?:__rustc::)?__(?:rust|rdl|rg|rde)_(?:re)?alloc(?:_zeroed)?|(?:std::)?__rdl_alloc|__rustc::\w+"
    r"|alloc::alloc::.*|<alloc::alloc::.*|<std::alloc::.*"
)
_SYSTEM_CALL = re.compile(r"_*(?:GI_+)?(?:mmap(?:64)?|mremap|brk|sbrk|syscall)")
# The names at which other tools are to cut a stack off, so that its bytes count for the allocator's caller. In RE2's
# syntax, too: pprof matches whole names with it, after cutting off parameters.
ALLOCATOR_NAMES = "|".join(
    (
        _ALLOCATOR.pattern,
        _SYSTEM_CALL.pattern,
        rf"{_ALLOCATOR_MODULE.pattern}\+0x[0-9a-f]+",
        r"operator new(?:\[\])?",
    )
)
# Functions that get memory for their caller: found in thousands of programs and never the reason.
_WRAPPERS = (
    r"(?:.*::)?operator new(?:\[\])?",
    # xmalloc, zcalloc_num, safe_realloc, ck_strdup, ...
    r"_*(?:[xzsefgkpq]|my|safe|sys|os|mem|ck|pg|uv|av|ngx|nxt|ev|git|gpr|xml|checked|raw)_*(?:try)?_?(?:[mcrez]|re)?"
    r"(?:alloc|strdup|strndup|memdup|asprintf)(?:0|_?n|_?num|_?array|_?zero|_usable|_usable_internal)?",
    r"x\w{0,4}(?:alloc|strdup|memdup)(?:_?array)?",
    # the C library
    r"_*(?:str|strn|wcs)dup|_*v?asprintf(?:_chk|_internal)?|(?:_IO|_)*get(?:delim|line)",
    # GLib, CPython, redis, talloc, Apache, nginx, PostgreSQL, OpenSSL, SQLite, libxml2, Perl, PHP, Ruby, Node.js
    r"g_(?:try_)?(?:malloc|realloc|new)\w*|g_slice_(?:alloc|copy)\w*|g_(?:str|strn|mem)dup\w*|g_strdup_v?printf",
    r"_*Py(?:Mem|Object)_(?:Raw|Debug)*(?:Malloc|Calloc|Realloc|Alloc|Arena|Strdup)\w*|pymalloc_\w+|new_arena|_Py_NewArena",
    r"_?sds(?:new\w*|empty|dup|MakeRoomFor\w*|Resize|growzero)|s_(?:m|re|trym)alloc\w*",
    r"_*talloc_\w+|apr_p\w?alloc\w*|ngx_p\w*alloc\w*|ngx_create_temp_buf",
    r"re?palloc\w*|palloc\w*|pn?strdup|MemoryContext\w*Alloc\w*|(?:AllocSet|Generation|Slab|Bump)(?:Alloc|Realloc)\w*",
    r"(?:CRYPTO|OPENSSL)_\w*(?:alloc|dup)\w*|sqlite3\w*(?:Malloc|Realloc|StrDup|StrNDup)\w*|xmlMem\w*|xmlStrn?dup",
    r"(?:Perl_)?safesys\w+|_?e(?:m|c|re)alloc\w*|(?:ruby|rb|objspace)_x(?:m|c|re)alloc\w*",
    r"(?:node|v8::base)::(?:Unchecked)?(?:Malloc|Calloc|Realloc)\w*|v8::internal::(?:AllocWithRetry|NewArray)\b.*",
)
_WRAPPER = re.compile("|".join(_WRAPPERS))
# The standard libraries of C++ and Rust: their containers allocate for whoever fills them.
_LIBRARY = re.compile(r"<?&?(?:mut )?(?:std|__gnu_cxx|alloc|core|hashbrown|__cxxabiv1)::")
# GCC's and LLVM's copies of a function: "f.constprop.0", "f [clone .cold]".
_CLONE = re.compile(r"(?: \[clone [^\]]*\])+$|(?:\.(?:part|constprop|isra|cold|lto_priv|llvm)(?:\.\d\w*)?)+$")
_OPERATOR = re.compile(
    r"\boperator(?:\(\)|\[\]|<=>|<<=?|>>=?|->\*?|[<>]=?|\"\" ?\w+| (?:new|delete)(?:\[\])?|[-+*/%^&|~!=,]{1,2}|(?= ))"
    r"(?: (?=<))?"
)
_QUALIFIERS = re.compile(r"(?: const| volatile| &&?| noexcept)+$")
_OPENING, _CLOSING = "(<[{", ")>]}"
# The live view asks for the same names again with each look.
_REMEMBERED = 4096
_ANONYMOUS = "(anonymous namespace)"
_STRING = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >"


def is_allocator(frame: Frame) -> bool:
    """Whether the frame is a function of malloc itself, or of what stands in its place."""
    if _ALLOCATOR_MODULE.fullmatch(_base_name(frame)):
        return True
    return frame.function is not None and _ALLOCATOR.fullmatch(plain_name(frame.function)) is not None


def is_wrapper(frame: Frame) -> bool:
    """Whether the frame only gets memory for its caller (xmalloc, operator new, strdup, a container's code)."""
    if frame.function is None:
        return _BASE_MODULE.fullmatch(_base_name(frame)) is not None
    name = plain_name(frame.function)
    return bool(_LIBRARY.match(name) or _WRAPPER.fullmatch(name) or _SYSTEM_CALL.fullmatch(name))


def without_allocator(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """The stack from the caller of the allocator on; at least one frame remains of one that has any.

    System calls and functions without a name, between or before the allocator's, go with it.
    """
    end = 0
    for index, frame in enumerate(frames):
        if is_allocator(frame):
            end = index + 1
        elif frame.function is not None and not _SYSTEM_CALL.fullmatch(plain_name(frame.function)):
            break
    inside = {frame.module for frame in frames[:end] if is_allocator(frame)}
    if any(frame.function is None and frame.module not in inside for frame in frames[:end]):
        return tuple(frames)
    return tuple(frames[min(end, len(frames) - 1) :]) if frames else ()


def culprit(frames: Sequence[Frame]) -> int | None:
    """Index of the frame to look at first: the innermost that is not there for somebody else. None without frames.

    Where there is no such frame it is the innermost that is not the allocator's.
    """
    if not frames:
        return None
    outside = next((i for i, frame in enumerate(frames) if not is_allocator(frame)), len(frames) - 1)
    return next((i for i in range(outside, len(frames)) if not _is_passed_over(frames[i])), outside)


def label(frames: Sequence[Frame], count: int, ellipsis: str = ELLIPSIS) -> str:
    """The stack in one line, from the culprit on: ``caller < its caller < ...``, at most ``count`` names."""
    first = culprit(frames)
    return "" if first is None else " < ".join(frame_name(frame, ellipsis) for frame in frames[first : first + count])


def frame_name(frame: Frame, ellipsis: str = ELLIPSIS) -> str:
    """The function's short name, or ``module+0xoffset``, which addr2line takes, where no symbol covers the address."""
    if frame.function is None:
        module = _base_name(frame)
        return f"{module}+{frame.offset:#x}" if module else f"{frame.offset:#x}"
    is_generated = frame.language != "native" or (frame.module or "").startswith("/tmp/perf-")
    return frame.function if is_generated else short_name(frame.function, ellipsis)


@lru_cache(maxsize=_REMEMBERED)
def short_name(function: str, ellipsis: str = ELLIPSIS) -> str:
    """A C++ or Rust name without its parameters and return type, and with template arguments as ``<...>``.

    What is not understood stays as it is.
    """
    if "<" not in function and "(" not in function:
        return function
    text = function.replace(_STRING, "std::string").replace("std::__cxx11::", "std::").replace("std::__1::", "std::")
    clone = _CLONE.search(text)
    tail = clone[0].strip() if clone else ""
    try:
        short, dropped = _collapsed(text[: clone.start()] if clone else text, f"<{ellipsis}>")
    except _UnbalancedError:
        return function
    short = _QUALIFIERS.sub("", short)
    if dropped == {"<", "("}:
        short = _without_return_type(short)
    return short + (tail if tail.startswith(".") else f" {tail}" if tail else "")


class _UnbalancedError(ValueError):
    """Brackets that do not match: no C++ or Rust name."""


def _is_passed_over(frame: Frame) -> bool:
    return is_allocator(frame) or is_wrapper(frame)


def _base_name(frame: Frame) -> str:
    return (frame.module or "").removesuffix(" (deleted)").rpartition("/")[2]


@lru_cache(maxsize=_REMEMBERED)
def plain_name(function: str) -> str:
    """The short name without marks of a compiler's copy of the function: the same for each build of it."""
    return _CLONE.sub("", short_name(function, ""))


def _collapsed(text: str, arguments: str) -> tuple[str, set[str]]:
    """The text with ``arguments`` for each argument list and without parameter lists, and which of these there were."""
    out: list[str] = []
    dropped: set[str] = set()
    at = 0
    while at < len(text):
        operator = _OPERATOR.match(text, at)
        character = text[at]
        before = text[at - 1 : at]
        if operator:
            out.append(operator[0])
            at = operator.end()
        elif text.startswith(_ANONYMOUS, at):
            out.append(_ANONYMOUS)
            at += len(_ANONYMOUS)
        elif character == "<" and _takes_arguments(before, out):
            out.append(arguments)
            dropped.add("<")
            at = _matching(text, at)
        elif character == "(" and (before.isalnum() or before in '_>)]}"*&' or _ends_operator(out)) and before:
            dropped.add("(")
            at = _matching(text, at)
        else:
            out.append(character)
            at += 1
    return "".join(out), dropped


def _takes_arguments(before: str, out: list[str]) -> bool:
    return _ends_operator(out) or before.isalnum() or (before != "" and before in "_:]")


def _ends_operator(out: list[str]) -> bool:
    return bool(out) and out[-1].startswith("operator")


def _matching(text: str, start: int) -> int:
    """Behind the bracket that closes the one at ``start``."""
    open_brackets: list[str] = []
    at = start
    while at < len(text):
        operator = _OPERATOR.match(text, at)
        if operator or text.startswith("->", at):
            at = operator.end() if operator else at + 2
            continue
        character = text[at]
        at += 1
        if character in _OPENING:
            open_brackets.append(_CLOSING[_OPENING.index(character)])
        elif character in _CLOSING:
            # Inside of parentheses "<" and ">" may also compare: (A<3) and (A>3) close with the parenthesis.
            while character != ">" and open_brackets and open_brackets[-1] == ">":
                open_brackets.pop()
            if character == ">" and open_brackets and open_brackets[-1] != ">":
                continue
            if not open_brackets or open_brackets.pop() != character:
                break
            if not open_brackets:
                return at
    raise _UnbalancedError


def _without_return_type(text: str) -> str:
    """Only functions that are templates carry their return type, before the last blank outside of brackets."""
    operator = _OPERATOR.search(text)
    depth = 0
    cut = 0
    for at, character in enumerate(text[: operator.start() if operator else len(text)]):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == " " and not depth:
            cut = at + 1
    return text[cut:].lstrip("*&")
