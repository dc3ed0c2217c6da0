"""Print the tables of scripts/demo: time and throughput of each stage, accuracy, and paths of two figures."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main(work: Path) -> None:
    """Read the times and results in `work`, the folder of scripts/demo, and print them."""
    times = {}
    for line in (work / "times").read_text().splitlines():
        name, start, end = line.split()
        times[name] = float(end) - float(start)
    samples = {
        split: sum(shard["samples"] for shard in shards)
        for split, shards in json.loads((work / "shards/manifest.json").read_text())["splits"].items()
    }
    rows = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    total = sum(samples.values())
    images = {
        "draw": total,
        "shard": total,
        "train": samples["train"] * len(rows),
        "center": samples["val"],
        "ten-crop": samples["val"],
    }
    titles = {
        "draw": "draw the images",
        "shard": "shard and measure",
        "train": f"train {len(rows)} epochs",
        "center": "evaluate, center crop",
        "ten-crop": "evaluate, ten crops",
    }
    stages = Table(title="Stages, start-up included", title_justify="left")
    for name in ("stage", "seconds", "images", "images/s"):
        stages.add_column(name, justify="left" if name == "stage" else "right")
    for name, count in images.items():
        stages.add_row(titles[name], f"{times[name]:.1f}", f"{count:,}", f"{count / times[name]:,.0f}")
    stages.add_row("all", f"{sum(times.values()):.1f}", "", "")

    accuracy = Table(title="Accuracy (chance 10 %)", title_justify="left")
    for name in ("views", "top-1", "top-5"):
        accuracy.add_column(name, justify="left" if name == "views" else "right")
    for views in ("center", "ten-crop"):
        metrics = json.loads((work / f"{views}.json").read_text())["metrics"]
        accuracy.add_row(views, f"{metrics['top1']:.2%}", f"{metrics['top5']:.2%}")

    console = Console(width=100 if not sys.stdout.isatty() else None, highlight=False)
    for part in ("", stages, "", accuracy, ""):
        console.print(part)
    console.print(f"augmented crops:      {work / 'crops.png'}", soft_wrap=True)
    console.print(f"first-layer kernels:  {work / 'kernels.png'}", soft_wrap=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
