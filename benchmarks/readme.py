"""Write the README's tables of numbers, between their markers, from results/metrics.json and benchmarks/results/.

python benchmarks/readme.py
"""

from pathlib import Path
from typing import Any

from sevenfold import files
from sevenfold.evaluation import number

ROOT = Path(__file__).parent.parent


def tables() -> dict[str, str]:
    """Return each generated table, by the name of its marker."""
    repeated = [files.read_json(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    return {
        "results": results(files.read_json(ROOT / "results" / "metrics.json")),
        "repeated": "\n\n".join(repeat(found) for found in repeated),
    }


def results(metrics: dict[str, dict[str, Any]]) -> str:
    lines = ["| data set | application | winner | its number | best rival | its number | verdict |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for dataset, contests in metrics.items():
        for application, found in contests.items():
            score = f"{found['metric'].replace('_', ' ')} {number(found['score'])}"
            rival = found["rival"]
            lines.append(
                f"| {dataset} | {application} | {found['winner']} | {score} | {rival['name']} | {number(rival['score'])} | "
                f"{verdict(found)} |"
            )
    return "\n".join(lines)


def verdict(found: dict[str, Any]) -> str:
    """Return the verdict in a word, with the interval behind it."""
    low, high = found["difference"]["low"], found["difference"]["high"]
    if number(found["score"]) == number(found["rival"]["score"]):
        return "no difference that matters"
    word = "autoencoder wins" if low > 0 else "rival wins" if high < 0 else "no proven difference"
    return f"{word} ({low:+.4f} to {high:+.4f})"


def repeat(found: dict[str, Any]) -> str:
    """Return the table of one contest that was repeated over several splits."""
    test = found["test"]
    metrics = [m for m in test["sevenfold"] if all(m in values for values in test.values())]
    metrics.sort(key=lambda metric: metric != found["primary"])
    lines = [f"`{found['contest']}`, mean over {found['seeds']} splits, test rows:", ""]
    lines.append("| | " + " | ".join(m.replace("_", " ") for m in metrics) + " |")
    lines.append("| --- |" + " --- |" * len(metrics))
    for name in sorted(test, key=lambda n: (-test[n][found["primary"]], n != "sevenfold", n)):
        if name == "sevenfold":
            label = "**chosen** on validation, of the candidates"
        else:
            label = f"{name} ({'rival' if name in found['rivals'] else 'candidate'})"
        lines.append(f"| {label} | " + " | ".join(number(test[name][m]) for m in metrics) + " |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """Return the README's text with its tables made anew."""
    for name, table in tables().items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        if not after:
            raise ValueError(f"README.md has no markers {start.strip()} and {end.strip()}; put them back")
        text = before + start + table + end + after
    return text


def main() -> None:
    path = ROOT / "README.md"
    files.write_text(path, filled(path.read_text(encoding="utf-8")))
    print("README.md has the tables of today's numbers")


if __name__ == "__main__":
    main()
