"""Writes a data set as records: several pictures at a time, what was mended counted, what is bad refused or left
out.

What an example is, and how it is checked and encoded, is the caller's: `common/detection.py`,
`hourglass/poses.py`.
"""

import collections
import concurrent.futures
import os
import pathlib
from typing import NamedTuple

from tqdm import tqdm

from common import images, records
from common.errors import UserError


NAMED = 5  # names of what was left out for one reason


class Report(NamedTuple):
    folder: pathlib.Path
    manifest: dict
    repaired: dict  # what -> how often
    skipped: list  # {"split", "file", "reason"}
    left_out: dict  # reason -> {"count", "names": the first few}


def build(folder, splits, example, *, kind, labels, builder, origin="", manifest=None, units=("pictures", "objects"),
          left_out=None, shards=None, num_workers=None, on_bad="error", progress=True):
    """Writes the records of {split: items} to `folder` and returns a `Report`, which it also prints.

    example: item -> (serialized record, how many parts it has, Counter of repairs), or a UserError. units: the
    words for records and for their parts; the manifest has the sum of these and the largest per split. manifest:
    what else is to be in it, or a function that gives this when all are written. left_out: {reason: paths or names} of
    what the reader of the source passed over; it is counted and named, in print and in the manifest. shards: per
    split; None makes one for every 1,000 records. num_workers: threads (the time goes into decoding, which leaves
    Python's lock), default one per CPU; the files are the same with any number. on_bad: "error" stops at the first
    item that cannot be used, "skip" leaves it out and lists it in the manifest; where that leaves nothing, the
    UserError says what was skipped.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"on_bad must be error or skip, not {on_bad!r}")
    folder = pathlib.Path(folder)
    unit, parts = units[0].rstrip("s"), units[1]
    repaired, skipped = collections.Counter(), []

    def attempt(item):
        try:
            return example(item)
        except UserError as error:
            return None, str(item), error

    with records.RecordWriter(folder, name=folder.name, kind=kind, labels=labels, source=origin,
                              builder=builder) as writer:
        for split, items in splits.items():
            facts = {parts: 0, f"most_{parts}": 0}
            results = _ordered(attempt, items, num_workers or os.cpu_count())
            results = tqdm(results, total=len(items), desc=f"{folder.name} {split}", unit=unit, disable=not progress)
            kept = _kept(results, split, units, on_bad, repaired, skipped, facts)
            writer.write_split(split, kept, total=len(items), num_shards=shards or max(1, round(len(items) / 1000)))
            writer.manifest["splits"][split].update(facts)
        if skipped and not any(entry["examples"] for entry in writer.manifest["splits"].values()):
            raise UserError(f"Not one of the {units[0]} can be used, and {folder} is not written. "
                            + " ".join(skipped_lines(skipped)))
        left_out = summarize(left_out or {})
        more = manifest() if callable(manifest) else manifest or {}
        writer.manifest.update(more, skipped=skipped, repaired=dict(sorted(repaired.items())), left_out=left_out)
        writer.publish()
    report = Report(folder, writer.manifest, dict(repaired), skipped, left_out)
    if progress:
        print(describe(report, units))
    return report


def summarize(left_out):
    """{reason: {"count", "names": the first few}} of {reason: paths or names}, for a manifest and `left_out_lines`."""
    return {reason: {"count": len(names), "names": [getattr(name, "name", str(name)) for name in names[:NAMED]]}
            for reason, names in sorted(left_out.items()) if names}


def left_out_lines(left_out):
    """A line for each reason of `summarize`: how many were left out, and which."""
    return [f"left out: {entry['count']} {reason}: {', '.join(entry['names'])}"
            + (", ..." if entry["count"] > len(entry["names"]) else "") for reason, entry in left_out.items()]


def skipped_lines(skipped):
    """A line for each of the first 20 that were skipped, and why; then how many more there are."""
    more = [f"skipped: {len(skipped) - 20} more"] if len(skipped) > 20 else []
    return [f"skipped: {entry['reason']}" for entry in skipped[:20]] + more


def read_picture(image, filename, annotated_size=None, **options):
    """(the `images.Picture` of a path or of encoded bytes, its name in messages). Raises UserError.

    options: turned, on_white, of `images.prepare`.
    """
    if isinstance(image, bytes):
        return images.prepare(image, filename, annotated_size=annotated_size, **options), filename
    try:
        data = pathlib.Path(image).read_bytes()
    except OSError as error:
        raise UserError(f"{image} must be readable: {error.strerror}. Put the picture there or remove its "
                        "annotation.") from None
    return images.prepare(data, str(image), annotated_size=annotated_size, **options), str(image)


def describe(report, units=("pictures", "objects")):
    """A `Report` in words: counts, what was repaired, what was skipped and why."""
    lines = [f"{report.folder}: {split} {entry['examples']} {units[0]}, {entry[units[1]]} {units[1]}"
             for split, entry in report.manifest["splits"].items()]
    lines += left_out_lines(report.left_out)
    lines += [f"repaired: {what}: {times}" for what, times in sorted(report.repaired.items())]
    lines += skipped_lines(report.skipped)
    if len(report.skipped) > 20:
        lines[-1] += f", see {report.folder / records.MANIFEST}"
    return "\n".join(lines)


def _kept(results, split, units, on_bad, repaired, skipped, facts):
    unit, parts = units
    for record, count, repairs in results:
        if record is None:
            item, error = count, repairs
            if on_bad == "error":
                raise UserError(f"{error} To leave such {unit} out, use --skip_bad.")
            skipped.append({"split": split, "file": item, "reason": str(error)})
            continue
        repaired.update(repairs)
        facts[parts] += count
        facts[f"most_{parts}"] = max(facts[f"most_{parts}"], count)
        yield record


def _ordered(function, items, num_workers):
    """`map(function, items)` in threads, in order, with few results waiting."""
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
