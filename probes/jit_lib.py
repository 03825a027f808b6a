"""The run-time library of compiled programs, part one, as LLVM IR: element conversion, traversal of views, map primitives.

Responsible for: visiting a view of any strides and element type in C order, and the map operations of `probes.cells`, fast. A
contiguous float32 or double view is handed to a lane function where it lies; every other view is converted chunk by chunk into
doubles on the stack first. Lanes that a chunk's tail does not fill get an element that adds nothing.
Refuses: symbols of any other library; everything is written out here and in `probes.jit_lanes`.

    view = 12 words: address | dtype | rank | argument | 4 sizes | 4 strides in bytes; axes from `rank` on have size 1, stride 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from probes.cells import BINS_BEFORE, DROPS, HASH_PROBES, NANS, TAKEN, USED
from probes.fixedmath import NAN
from probes.isa import HIST_LOG2_BINS, HIST_LOG2_LOW, LANES
from probes.jit_ir import Function, constant, double, emit_exp, emit_log, floats, ints

DTYPES: Final = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
ITEM_BYTES: Final = (4, 8, 2, 2, 8, 4, 2, 1, 1, 1)
F32, F64, F16, BF16 = range(4)
VIEW_WORDS: Final = 12
DATA, DTYPE, RANK, ORIGIN, DIMS, STRIDES = 0, 1, 2, 3, 4, 8
CHUNK: Final = 1024
"""Elements converted at a time: two such buffers fit into the smallest first-level cache."""
NARROW: Final = 16
"""Elements converted, or given to exp and log, at a time."""
# A view made ready for traversal: count | contiguous | address | dtype | 4 sizes | 4 strides, last axis innermost.
_N_COUNT, _N_FLAT, _N_DATA, _N_DTYPE, _N_DIMS, _N_STRIDES = 0, 1, 2, 3, 4, 8


# --- elements ----------------------------------------------------------------------------------------------------------


def _half(f: Function, raw: str, width: int) -> str:
    """float16 bits to doubles by integer operations: not every machine has an instruction, and none may be called."""
    n, d = ints(width), floats(width)

    def num(k: int) -> str:
        return str(k) if width == 1 else f"splat (i64 {k})"

    wide = f.op(f"zext {ints(width, 16)} {raw} to {n}")
    rest = f.op(f"and {n} {wide}, {num(0x7FFF)}")
    sign = f.op(f"shl {n} {f.op(f'and {n} {wide}, {num(0x8000)}')}, {num(48)}")
    moved = f.op(f"shl {n} {rest}, {num(42)}")
    normal = f.op(f"add {n} {moved}, {num(1008 << 52)}")
    special = f.op(f"or {n} {moved}, {num(0x7FF0000000000000)}")
    shifted = f.op(f"bitcast {n} {f.op(f'or {n} {rest}, {num(0x4330000000000000)}')} to {d}")
    tiny = f.op(f"fmul {d} {f.op(f'fsub {d} {shifted}, {constant(2.0**52, width)}')}, {constant(2.0**-24, width)}")
    tiny = f.op(f"bitcast {d} {tiny} to {n}")
    bits = f.select(f.op(f"icmp ult {n} {rest}, {num(0x400)}"), n, tiny, normal, width)
    bits = f.select(f.op(f"icmp uge {n} {rest}, {num(0x7C00)}"), n, special, bits, width)
    return f.op(f"bitcast {n} {f.op(f'or {n} {bits}, {sign}')} to {d}")


def widen(f: Function, dtype: int, pointer: str, width: int) -> str:
    """Load `width` neighbouring floats of a type as doubles."""
    d = floats(width)
    match dtype:
        case 1:
            return f.load(d, pointer, 1)
        case 0:
            single = d.replace("double", "float")
            return f.op(f"fpext {single} {f.load(single, pointer, 1)} to {d}")
        case 2:
            return _half(f, f.load(ints(width, 16), pointer, 1), width)
    raw = f.op(f"zext {ints(width, 16)} {f.load(ints(width, 16), pointer, 1)} to {ints(width, 32)}")
    high = f.op(f"shl {ints(width, 32)} {raw}, {'16' if width == 1 else 'splat (i32 16)'}")
    single = d.replace("double", "float")
    return f.op(f"fpext {single} {f.op(f'bitcast {ints(width, 32)} {high} to {single}')} to {d}")


def _load1() -> str:
    f = Function("define hidden double @load1(ptr %p, i64 %dtype)")
    cases = " ".join(f"i64 {i}, label %d{i}" for i in range(len(DTYPES)))
    f.do(f"switch i64 %dtype, label %d{len(DTYPES) - 1} [ {cases} ]")
    for i, (name, size) in enumerate(zip(DTYPES, ITEM_BYTES, strict=True)):
        f.label(f"d{i}")
        if i <= BF16:
            value = widen(f, i, "%p", 1)
        else:
            cast = "sitofp" if name.startswith("int") else "uitofp"
            value = f.op(f"{cast} i{8 * size} {f.load(f'i{8 * size}', '%p', 1)} to double")
        f.do(f"ret double {value}")
    return f.text()


def _convert() -> str:
    """A run of equally spaced elements into doubles."""
    f = Function("define hidden void @convert(ptr %p, i64 %stride, i64 %dtype, i64 %n, ptr %out)")
    done = f.slot("i64")
    f.store("i64", "0", done)
    whole = f.op(f"and i64 %n, {-NARROW}")
    for dtype in (F32, F64, F16, BF16):
        is_type = f.op(f"icmp eq i64 %dtype, {dtype}")
        unit = f.op(f"icmp eq i64 %stride, {ITEM_BYTES[dtype]}")
        with f.when(f.op(f"and i1 {is_type}, {unit}")):
            with f.repeat(whole, NARROW) as i:
                source = f.at("%p", f.op(f"mul i64 {i}, {ITEM_BYTES[dtype]}"))
                f.store(floats(NARROW), widen(f, dtype, source, NARROW), f.at("%out", i, "double"), 8)
            f.store("i64", whole, done)
    # What is left, or lies apart: the usual type without asking for each element which it is.
    start = f.load("i64", done)
    left = f.op(f"sub i64 %n, {start}")
    single = f.op(f"icmp eq i64 %dtype, {F32}")
    for usual in (True, False):
        count = f.select(single, "i64", *((left, "0") if usual else ("0", left)))
        with f.repeat(count) as k:
            i = f.op(f"add i64 {k}, {start}")
            source = f.at("%p", f.op(f"mul i64 {i}, %stride"))
            value = widen(f, F32, source, 1) if usual else f.op(f"call double @load1(ptr {source}, i64 %dtype)")
            f.store("double", value, f.at("%out", i, "double"))
    f.do("ret void")
    return f.text()


# --- traversal ---------------------------------------------------------------------------------------------------------


def _count() -> str:
    f = Function("define hidden i64 @count(ptr %v)")
    n = f.word("%v", DIMS)
    for k in range(1, 4):
        n = f.op(f"mul i64 {n}, {f.word('%v', DIMS + k)}")
    f.do(f"ret i64 {n}")
    return f.text()


def _ready() -> str:
    """Merge neighbouring axes that lie as one, from the last on, so that the innermost run is as long as can be."""
    f = Function("define hidden void @ready(ptr %v, ptr %out)")
    for k in range(4):
        f.put("%out", _N_DIMS + k, 1)
        f.put("%out", _N_STRIDES + k, 0)
    axis = f.slot("i64")
    f.store("i64", "4", axis)
    # A row has nothing to merge.
    row = f.op(f"icmp eq i64 {f.word('%v', RANK)}, 1")
    with f.when(row):
        f.put("%out", _N_DIMS + 3, f.word("%v", DIMS))
        f.put("%out", _N_STRIDES + 3, f.word("%v", STRIDES))
        f.store("i64", "3", axis)
    merge, merged_all = f.name("merge"), f.name("merged")
    f.do(f"br i1 {row}, label %{merged_all}, label %{merge}")
    f.label(merge)
    for k in (3, 2, 1, 0):
        size, stride = f.word("%v", DIMS + k), f.word("%v", STRIDES + k)
        with f.when(f.op(f"icmp ne i64 {size}, 1")):
            merged = f.slot("i1", 1)
            f.store("i1", "false", merged, 1)
            m = f.load("i64", axis)
            with f.when(f.op(f"icmp slt i64 {m}, 4")):
                at = f.op(f"add i64 {m}, {_N_DIMS}")
                held, step = f.word("%out", at), f.word("%out", f.op(f"add i64 {m}, {_N_STRIDES}"))
                fits = f.op(f"icmp eq i64 {stride}, {f.op(f'mul i64 {held}, {step}')}")
                f.store("i1", fits, merged, 1)
                with f.when(fits):
                    f.put("%out", at, f.op(f"mul i64 {held}, {size}"))
            with f.when(f.op(f"xor i1 {f.load('i1', merged, 1)}, true")):
                m = f.op(f"sub i64 {f.load('i64', axis)}, 1")
                f.store("i64", m, axis)
                f.put("%out", f.op(f"add i64 {m}, {_N_DIMS}"), size)
                f.put("%out", f.op(f"add i64 {m}, {_N_STRIDES}"), stride)
    f.do(f"br label %{merged_all}")
    f.label(merged_all)
    dtype = f.word("%v", DTYPE)
    table = f"[{len(ITEM_BYTES)} x i64] [{', '.join(f'i64 {n}' for n in ITEM_BYTES)}]"
    item = f.op(f"extractvalue {table}, 0")
    for k in range(1, len(ITEM_BYTES)):
        item = f.select(f.op(f"icmp eq i64 {dtype}, {k}"), "i64", str(ITEM_BYTES[k]), item)
    one_axis = f.op(f"icmp sge i64 {f.load('i64', axis)}, 3")
    unit = f.op(f"icmp eq i64 {f.word('%out', _N_STRIDES + 3)}, {item}")
    single = f.op(f"icmp eq i64 {f.word('%out', _N_DIMS + 3)}, 1")
    flat = f.op(f"and i1 {one_axis}, {f.op(f'or i1 {unit}, {single}')}")
    f.put("%out", _N_FLAT, f.op(f"zext i1 {flat} to i64"))
    f.put("%out", _N_COUNT, f.op("call i64 @count(ptr %v)"))
    f.put("%out", _N_DATA, f.word("%v", DATA))
    f.put("%out", _N_DTYPE, dtype)
    f.do("ret void")
    return f.text()


def _fill() -> str:
    """Elements start .. start + n - 1 in C order as doubles, then `pad` up to a whole block of lanes."""
    f = Function("define hidden void @fill(ptr %r, i64 %start, i64 %n, ptr %out, double %pad)")
    base, dtype = f.op(f"inttoptr i64 {f.word('%r', _N_DATA)} to ptr"), f.word("%r", _N_DTYPE)
    padded, steps = f.name("padded"), f.name("steps")
    one, many = f.name("one"), f.op(f"icmp ne i64 {f.word('%r', _N_DIMS + 3)}, {f.word('%r', _N_COUNT)}")
    f.do(f"br i1 {many}, label %{steps}, label %{one}")
    f.label(one)
    begin = f.at(base, f.op(f"mul i64 %start, {f.word('%r', _N_STRIDES + 3)}"))
    f.do(f"call void @convert(ptr {begin}, i64 {f.word('%r', _N_STRIDES + 3)}, i64 {dtype}, i64 %n, ptr %out)")
    f.do(f"br label %{padded}")
    f.label(steps)
    size = [f.word("%r", _N_DIMS + k) for k in range(4)]
    stride = [f.word("%r", _N_STRIDES + k) for k in range(4)]
    at = [f.slot("i64") for _ in range(4)]
    left = "%start"
    for k in (3, 2, 1):
        f.store("i64", f.op(f"urem i64 {left}, {size[k]}"), at[k])
        left = f.op(f"udiv i64 {left}, {size[k]}")
    f.store("i64", left, at[0])
    done = f.slot("i64")
    f.store("i64", "0", done)
    head, body, after = f.name("head"), f.name("body"), f.name("after")
    f.do(f"br label %{head}")
    f.label(head)
    so_far = f.load("i64", done)
    f.do(f"br i1 {f.op(f'icmp slt i64 {so_far}, %n')}, label %{body}, label %{after}")
    f.label(body)
    offset = "0"
    for k in range(4):
        step = f.op(f"mul i64 {f.load('i64', at[k])}, {stride[k]}")
        offset = f.op(f"add i64 {offset}, {step}")
    room = f.op(f"sub i64 {size[3]}, {f.load('i64', at[3])}")
    want = f.op(f"sub i64 %n, {so_far}")
    run = f.op(f"call i64 @llvm.smin.i64(i64 {room}, i64 {want})")
    target = f.at("%out", so_far, "double")
    f.do(f"call void @convert(ptr {f.at(base, offset)}, i64 {stride[3]}, i64 {dtype}, i64 {run}, ptr {target})")
    f.store("i64", f.op(f"add i64 {so_far}, {run}"), done)
    f.store("i64", "0", at[3])
    carry = "true"
    for k in (2, 1, 0):
        moved = f.op(f"add i64 {f.load('i64', at[k])}, {f.op(f'zext i1 {carry} to i64')}")
        carry = f.op(f"icmp eq i64 {moved}, {size[k]}")
        f.store("i64", f.select(carry, "i64", "0", moved), at[k])
    f.do(f"br label %{head}")
    f.label(after)
    f.do(f"br label %{padded}")
    f.label(padded)
    short = f.op(f"and i64 {f.op('sub i64 0, %n')}, {LANES - 1}")
    with f.repeat(short) as i:
        f.store("double", "%pad", f.at("%out", f.op(f"add i64 {i}, %n"), "double"))
    f.do("ret void")
    return f.text()


def _drive() -> str:
    """Feed one view, or two of one shape (%b null: one), to a lane function in blocks of NARROW elements.

    A lane function is told whole blocks; one that takes LANES elements at a time rounds up, and finds padding there.
    """
    f = Function(
        "define hidden void @drive(ptr %a, ptr %b, ptr %acc, ptr %f64, ptr %f32, double %pa, double %pb, double %p, double %q)"
    )
    table, buffer = f"[{VIEW_WORDS} x i64]", f"[{CHUNK} x double]"
    ready = [f.slot(table), f.slot(table)]
    chunk = [f.slot(buffer, 64), f.slot(buffer, 64)]
    two = f.op("icmp ne ptr %b, null")
    f.do(f"call void @ready(ptr %a, ptr {ready[0]})")
    with f.when(two):
        f.do(f"call void @ready(ptr %b, ptr {ready[1]})")
    ready[1] = f.select(two, "ptr", ready[1], ready[0])
    n = f.word(ready[0], _N_COUNT)
    flat = f.op(f"and i64 {f.word(ready[0], _N_FLAT)}, {f.word(ready[1], _N_FLAT)}")
    same = f.op(f"icmp eq i64 {f.word(ready[0], _N_DTYPE)}, {f.word(ready[1], _N_DTYPE)}")
    direct = f.op(f"and i1 {same}, {f.op(f'icmp ne i64 {flat}, 0')}")
    whole, done = f.op(f"and i64 {n}, {-LANES}"), f.slot("i64")
    blocks = f.op(f"lshr i64 {whole}, {NARROW.bit_length() - 1}")
    f.store("i64", "0", done)
    data = [f.op(f"inttoptr i64 {f.word(r, _N_DATA)} to ptr") for r in ready]
    for dtype, lane in ((F32, "%f32"), (F64, "%f64")):
        has = f.op(f"icmp ne ptr {lane}, null")
        this = f.op(f"icmp eq i64 {f.word(ready[0], _N_DTYPE)}, {dtype}")
        with f.when(f.op(f"and i1 {direct}, {f.op(f'and i1 {has}, {this}')}")):
            f.do(f"call void {lane}(ptr %acc, ptr {data[0]}, ptr {data[1]}, i64 {blocks}, double %p, double %q)")
            f.store("i64", whole, done)
    head, body, after = f.name("head"), f.name("body"), f.name("after")
    f.do(f"br label %{head}")
    f.label(head)
    so_far = f.load("i64", done)
    f.do(f"br i1 {f.op(f'icmp slt i64 {so_far}, {n}')}, label %{body}, label %{after}")
    f.label(body)
    size = f.op(f"call i64 @llvm.smin.i64(i64 {CHUNK}, i64 {f.op(f'sub i64 {n}, {so_far}')})")
    f.do(f"call void @fill(ptr {ready[0]}, i64 {so_far}, i64 {size}, ptr {chunk[0]}, double %pa)")
    with f.when(two):
        f.do(f"call void @fill(ptr {ready[1]}, i64 {so_far}, i64 {size}, ptr {chunk[1]}, double %pb)")
    count = f.op(f"lshr i64 {f.op(f'add i64 {size}, {NARROW - 1}')}, {NARROW.bit_length() - 1}")
    f.do(f"call void %f64(ptr %acc, ptr {chunk[0]}, ptr {chunk[1]}, i64 {count}, double %p, double %q)")
    f.store("i64", f.op(f"add i64 {so_far}, {size}"), done)
    f.do(f"br label %{head}")
    f.label(after)
    f.do("ret void")
    return f.text()


# --- maps --------------------------------------------------------------------------------------------------------------


def _hash_slot() -> str:
    """Address of a key's double, or null; `%insert` makes room for it or counts a drop."""
    f = Function("define hidden ptr @hash_slot(ptr %control, ptr %cells, i64 %slots, i64 %size, i64 %key, i1 %insert)")
    mask = f.op("sub i64 %slots, 1")
    z = f.op("add i64 %key, -7046029254386353131")
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        moved = f.op(f"lshr i64 {z}, {shift}")
        z = f.op(f"mul i64 {f.op(f'xor i64 {z}, {moved}')}, {factor}")
    z = f.op(f"xor i64 {z}, {f.op(f'lshr i64 {z}, 31')}")
    values = f.at("%cells", "%slots", "i64")
    taken = f.at(values, "%slots", "i64")
    miss, gone, full = f.name("miss"), f.name("gone"), f.name("full")
    with f.repeat(str(HASH_PROBES)) as i:
        slot = f.op(f"and i64 {f.op(f'add i64 {z}, {i}')}, {mask}")
        mark, found, other = f.at(taken, slot), f.name("taken"), f.name("other")
        free = f.op(f"icmp eq i8 {f.load('i8', mark, 1)}, 0")
        empty = f.name("free")
        f.do(f"br i1 {free}, label %{empty}, label %{found}")
        f.label(empty)
        room = f.name("room")
        f.do(f"br i1 %insert, label %{room}, label %{gone}")
        f.label(room)
        used, put = f.word("%control", USED), f.name("put")
        f.do(f"br i1 {f.op(f'icmp slt i64 {used}, %size')}, label %{put}, label %{full}")
        f.label(put)
        f.store("i8", "1", mark, 1)
        f.put("%cells", slot, "%key")
        f.bump("%control", USED)
        f.do(f"ret ptr {f.at(values, slot, 'double')}")
        f.label(found)
        hit = f.name("hit")
        held = f.word("%cells", slot)
        f.do(f"br i1 {f.op(f'icmp eq i64 {held}, %key')}, label %{hit}, label %{other}")
        f.label(hit)
        f.do(f"ret ptr {f.at(values, slot, 'double')}")
        f.label(other)
    f.do(f"br label %{miss}")
    f.label(miss)
    f.do(f"br i1 %insert, label %{full}, label %{gone}")
    f.label(full)
    f.bump("%control", DROPS)
    f.do("ret ptr null")
    f.label(gone)
    f.do("ret ptr null")
    return f.text()


def _emit_ring() -> str:
    f = Function(
        "define hidden void @ring_emit(ptr %control, ptr %cells, i64 %size, i64 %step, i64 %site, i64 %tag, double %x)"
    )
    put = f.word("%control", USED)
    held = f.op(f"sub i64 {put}, {f.word('%control', TAKEN)}")
    full, room = f.name("full"), f.name("room")
    f.do(f"br i1 {f.op(f'icmp sge i64 {held}, %size')}, label %{full}, label %{room}")
    f.label(full)
    f.bump("%control", DROPS)
    f.do("ret void")
    f.label(room)
    nan = f.op("fcmp uno double %x, %x")
    with f.when(nan):
        f.bump("%control", NANS)
    value = f.select(nan, "double", double(NAN), "%x")
    entry = f.at("%cells", f.op(f"shl i64 {f.op(f'urem i64 {put}, %size')}, 2"), "i64")
    for word, text in enumerate(("%step", "%site", "%tag")):
        f.put(entry, word, text)
    f.store("double", value, f.at(entry, 3, "i64"))
    f.bump("%control", USED)
    f.do("ret void")
    return f.text()


def _bin_log2() -> str:
    f = Function("define hidden i64 @bin_log2(double %x)")
    bits = f.op("bitcast double %x to i64")
    exponent = f.op(f"sub i64 {f.op(f'ashr i64 {bits}, 52')}, 1023")
    high = HIST_LOG2_LOW + HIST_LOG2_BINS - 1
    clamped = f.op(f"call i64 @llvm.smax.i64(i64 {exponent}, i64 {HIST_LOG2_LOW})")
    clamped = f.op(f"call i64 @llvm.smin.i64(i64 {clamped}, i64 {high})")
    bin_ = f.op(f"add i64 {clamped}, {BINS_BEFORE - HIST_LOG2_LOW}")
    bin_ = f.select(f.op(f"fcmp ole double %x, {double(0.0)}"), "i64", "1", bin_)
    f.do(f"ret i64 {f.select(f.op('fcmp uno double %x, %x'), 'i64', '0', bin_)}")
    return f.text()


def _bin_linear() -> str:
    f = Function("define hidden i64 @bin_linear(double %x, double %low, double %high, double %scale, i64 %size)")
    position = f.op(f"fmul double {f.op('fsub double %x, %low')}, %scale")
    last = f.op("sub i64 %size, 1")
    index = f.op(f"call i64 @llvm.fptosi.sat.i64.f64(double {position})")
    index = f.op(f"call i64 @llvm.smin.i64(i64 {index}, i64 {last})")
    bin_ = f.op(f"add i64 {f.op(f'call i64 @llvm.smax.i64(i64 {index}, i64 0)')}, {BINS_BEFORE}")
    above = f.op(f"add i64 %size, {BINS_BEFORE}")
    bin_ = f.select(f.op("fcmp oge double %x, %high"), "i64", above, bin_)
    bin_ = f.select(f.op("fcmp olt double %x, %low"), "i64", "1", bin_)
    f.do(f"ret i64 {f.select(f.op('fcmp uno double %x, %x'), 'i64', '0', bin_)}")
    return f.text()


def _scalar(name: str, emit: Callable[[Function, str, int], str]) -> Callable[[], str]:
    def text() -> str:
        f = Function(f"define hidden double @{name}(double %x)")
        f.do(f"ret double {emit(f, '%x', 1)}")
        return f.text()

    return text


def _walk() -> str:
    """All of the traversal, in one module so that it is inlined into itself."""
    return "\n".join(part() for part in (_load1, _convert, _count, _ready, _fill, _drive))


PARTS: Final[dict[str, Callable[[], str]]] = {
    "walk": _walk,
    "hash_slot": _hash_slot,
    "ring_emit": _emit_ring,
    "bin_log2": _bin_log2,
    "bin_linear": _bin_linear,
    "exp1": _scalar("exp1", emit_exp),
    "log1": _scalar("log1", emit_log),
}
"""The library's modules, by name, without the declarations of what they call."""
