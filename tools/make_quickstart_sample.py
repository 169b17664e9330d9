"""Make the bundled sample: unlabelled dijet events in a TTree, and their truth in a sidecar keyed by event id.

The events are the project's own simulation (Pythia 8, parametrised detector). Values are kept in single precision with
few bits of mantissa, which shifts m_JJ by less than 1e-4 of itself and makes the file small enough to bundle.

    python tools/make_quickstart_sample.py qcd.h5 signal_3500_500_100.h5 --output configs/data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import uproot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drapes_hep.events.formats.writers import write_feature_root
from drapes_hep.events.skims import write_truth

LARGEST = 10_000_000
"""Bytes of both files together."""


def rounded(values: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Round single precision to ``bits`` bits of mantissa, to nearest: the bits that are zero compress away."""
    drop = np.uint32(23 - bits)
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (((raw + (np.uint32(1) << (drop - np.uint32(1)))) >> drop) << drop).view(np.float32)


def mass(columns: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """Return m_JJ in GeV from the columns px, py, pz, m of both jets, in double precision."""
    total = np.zeros((4, len(columns["mj1"])))
    for jet in ("j1", "j2"):
        p = np.stack([columns[q + jet].astype(np.float64) for q in ("px", "py", "pz")])
        total += np.stack([np.sqrt((p**2).sum(axis=0) + columns["m" + jet].astype(np.float64) ** 2), *p])
    mass2: npt.NDArray[np.float64] = total[0] ** 2 - (total[1:] ** 2).sum(axis=0)
    return np.sqrt(mass2)


def load(path: Path, bits: int, tau_bits: int, mjj_min: float) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
    """Read a simulated file as feature columns above ``mjj_min``; also give the largest relative shift of m_JJ."""
    with h5py.File(path) as file:
        jets, tau = file["jets"][:].astype(np.float64), file["tau"][:]
    exact: dict[str, npt.NDArray[np.float64]] = {}
    columns: dict[str, npt.NDArray[np.float32]] = {}
    for i, jet in enumerate(("j1", "j2")):
        pt, eta, phi, m = jets[:, i].T
        momenta = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "m": np.maximum(m, 0)}
        for name, values in momenta.items():
            exact[name + jet] = values
            columns[name + jet] = rounded(values.astype(np.float32), bits)
        for n in range(3):
            columns[f"tau{n + 1}{jet}"] = rounded(tau[:, i, n], tau_bits)
    mjj = mass(columns)
    keep = mjj > mjj_min
    shift = np.abs(mjj / mass(exact) - 1)[keep].max()  # type: ignore[arg-type]
    return {name: values[keep] for name, values in columns.items()}, float(shift)


def main(arguments: list[str] | None = None) -> int:
    """Make the sample and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("background", type=Path, help="simulated background (HDF5: jets, tau)")
    parser.add_argument("signal", type=Path, help="simulated signal")
    parser.add_argument("--output", type=Path, default=Path("configs/data"))
    parser.add_argument("--n-background", type=int, default=170_000)
    parser.add_argument("--n-signal", type=int, default=2_000)
    parser.add_argument("--mjj-min", type=float, default=2700.0, help="GeV")
    parser.add_argument("--bits", type=int, default=14, help="bits of mantissa of momenta and masses")
    parser.add_argument("--tau-bits", type=int, default=13, help="bits of mantissa of tau1-3")
    parser.add_argument("--seed", type=int, default=20200607)
    args = parser.parse_args(arguments)

    rng = np.random.default_rng(args.seed)
    parts, labels, shifts = [], [], []
    for label, path, n_events in ((0, args.background, args.n_background), (1, args.signal, args.n_signal)):
        columns, shift = load(path, args.bits, args.tau_bits, args.mjj_min)
        available = len(columns["mj1"])
        if available < n_events:
            parser.error(f"{path} has {available} events above {args.mjj_min:g} GeV, {n_events} are wanted")
        chosen = rng.choice(available, n_events, replace=False)
        parts.append({name: values[chosen] for name, values in columns.items()})
        labels.append(np.full(n_events, label))
        shifts.append(shift)
    # one shuffle for the order and another for the identities: neither says which events are signal
    order, total = rng.permutation(args.n_background + args.n_signal), args.n_background + args.n_signal
    events = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    event_id = rng.permutation(total).astype(np.int32)
    truth = np.concatenate(labels)[order]

    root, sidecar = args.output / "quickstart.root", args.output / "quickstart.truth.parquet"
    write_feature_root(root, {"event_id": event_id, **events}, "ttree", step=total // 4 + 1, compression=uproot.LZMA(9))
    write_truth(sidecar, event_id, truth)
    sizes = root.stat().st_size, sidecar.stat().st_size
    sys.stdout.write(f"{root}: {total} events, {sizes[0]} bytes; largest shift of m_JJ {max(shifts):.1e}\n")
    sys.stdout.write(f"{sidecar}: {int(truth.sum())} signal, {sizes[1]} bytes\n")
    if sum(sizes) >= LARGEST:
        sys.stderr.write(f"together {sum(sizes)} bytes: too large to bundle\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
