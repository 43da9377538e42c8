"""TensorBoard on a finished run and a search: what its server gives, and what a real browser shows."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from m3dist import config as configs
from m3dist import pipeline
from m3dist.search import report, space
from m3dist.search.ledger import Ledger

SMALL = [
    "synthetic.users=90", "synthetic.items=70", "synthetic.interactions=16", "backbone.dim=8",
    "backbone.content_dim=8", "backbone.negatives=16", "align.epochs=2", "align.evaluate_every=1",
    "invariance.rounds=2", "invariance.environments=2", "merge.epochs=3", "merge.evaluate_every=1",
]  # fmt: skip
SEARCH = """\
base: {synthetic: {users: 60, items: 50, interactions: 12}}
space: {merge.lr: {log_uniform: [0.001, 0.1]}, invariance.gate: {choice: [sigmoid, hard_sigmoid]}}
budget: {trials: 5}
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a TensorBoard that shows a run, `train`, and a search of five trials, `search`."""
    from tensorboard import program

    folder = tmp_path_factory.mktemp("board")
    pipeline.run(configs.load(None, [*SMALL, f"out={folder / 'run'}"]), quiet=True)
    (folder / "search.yaml").write_text(SEARCH)
    plan = space.load(folder / "search.yaml", [f"out={folder / 'found'}"])
    ledger = Ledger(plan)
    for n in range(5):
        values = {"merge.lr": 0.001 * 3**n, "invariance.gate": ["sigmoid", "hard_sigmoid"][n % 2]}
        ledger.record("proposed", trial=f"t{n}", index=n, values=values, keys=plan.keys(values))
        ledger.record("result", trial=f"t{n}", stage="merge", step=3, epochs=4, seconds=1.0, metric=0.1 + n / 100)
        ledger.record("ended", trial=f"t{n}", status="finished", metric=0.1 + n / 100)
        report.trial_board(plan, ledger.trials[f"t{n}"])
    report.finish(plan, ledger, 0)
    ledger.close()
    shown = folder / "shown"
    shown.mkdir()
    (shown / "train").symlink_to(folder / "run" / "tb")
    (shown / "search").symlink_to(folder / "found" / "tb")
    server = program.TensorBoard()
    server.configure(argv=["", "--logdir", str(shown), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"])
    address = server.launch()
    wait(lambda: len(asked(address, "scalars/tags")) == 7, 60)  # the run, the search, and its five trials
    return address


def asked(address: str, path: str, body: Any = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    with urlopen(Request(f"{address}data/plugin/{path}", data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def wait(true: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.3)


def test_the_server_gives_scalars_and_histograms(board: str) -> None:
    scalars = asked(board, "scalars/tags")
    assert {"align/loss", "merge/loss", "merge/ndcg@10"} <= set(scalars["train"])
    points = asked(board, "scalars/scalars?run=train&tag=merge/ndcg@10")
    assert [step for _, step, _ in points] == [0, 1, 2]
    histograms = asked(board, "histograms/tags")["train"]
    assert {f"invariance/mask {r}" for r in range(4)} <= set(histograms)
    rounds = asked(board, "histograms/histograms?run=train&tag=invariance/mask%200")
    assert len(rounds) == 2
    images = asked(board, "images/tags")["search/search"]
    assert set(images) == {"history", "importance", "parallel"}


def test_the_server_gives_a_trials_values_and_metrics(board: str) -> None:
    found: dict[str, Any] = {}

    def known() -> bool:
        found.update(asked(board, "hparams/experiment", {"experimentName": ""}))
        return bool(found.get("hparamInfos"))

    wait(known, 30)
    assert {info["name"]: info["type"] for info in found["hparamInfos"]} == {
        "merge.lr": "DATA_TYPE_FLOAT64", "invariance.gate": "DATA_TYPE_STRING",
    }  # fmt: skip
    metrics = [info["name"] for info in found["metricInfos"]]
    assert {metric["tag"] for metric in metrics} == {"hparam/ndcg@10", "hparam/epochs"}
    wanted = {
        "experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
        "colParams": [{"metric": metric} for metric in metrics], "startIndex": 0, "sliceSize": 100,
    }  # fmt: skip
    groups = asked(board, "hparams/session_groups", wanted)["sessionGroups"]
    shown = {}
    for group in groups:
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        shown[round(group["hparams"]["merge.lr"], 6)] = (round(values["hparam/ndcg@10"], 4), values["hparam/epochs"])
    assert shown == {round(0.001 * 3**n, 6): (round(0.1 + n / 100, 4), 4) for n in range(5)}


TEXT = """(() => { const out = []; const walk = node => {
  if (node.nodeType === 3) out.push(node.textContent);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) if (!['STYLE', 'SCRIPT'].includes(child.nodeName)) walk(child);
}; walk(document.body); return out.join(' ').replace(/\\s+/g, ' '); })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a headless Chromium that is told what to do through its DevTools protocol."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here to look at TensorBoard with; apt-get install chromium")
    home = tmp_path_factory.mktemp("chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,800", f"--user-data-dir={home}"]
    process = subprocess.Popen(
        [program, *flags, "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = home / "DevToolsActivePort"
        wait(lambda: told.exists() and "\n" in told.read_text(), 60)
        yield int(told.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(20)


async def look(port: int, address: str, words: list[str], picture: Path, seconds: float = 90) -> str:
    """What a page says, once it says all of `words` or the time is up; a picture of it is kept."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            target = json.loads(await answer.text())["webSocketDebuggerUrl"]
        async with session.ws_connect(target, max_msg_size=0) as page:
            count = 0

            async def do(method: str, **arguments: Any) -> dict[str, Any]:
                nonlocal count
                count += 1
                await page.send_json({"id": count, "method": method, "params": arguments})
                while (said := await page.receive_json()).get("id") != count:
                    pass
                return said["result"]

            await do("Page.navigate", url=address)
            text, until = "", time.monotonic() + seconds
            while time.monotonic() < until and not all(word in text for word in words):
                await asyncio.sleep(0.5)
                text = (await do("Runtime.evaluate", expression=TEXT, returnByValue=True))["result"].get("value", "")
            await asyncio.sleep(1)
            picture.write_bytes(base64.b64decode((await do("Page.captureScreenshot", format="png"))["data"]))
            await do("Page.close")
            return text


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("scalars", ["tag: align/club", "invariance", "merge"]),
        ("histograms", ["invariance/mask 0", "invariance/mask 3"]),
        ("hparams", ["merge.lr", "invariance.gate", "hard_sigmoid", "0.081", "hparam/ndcg@10"]),
        ("images", ["parallel", "importance"]),
    ],
)
def test_a_browser_shows(page: str, words: list[str], board: str, browser: int, tmp_path: Path) -> None:
    text = asyncio.run(look(browser, f"{board}#{page}", words, tmp_path / f"{page}.png"))
    assert not [word for word in words if word not in text], text[:3000]
    assert (tmp_path / f"{page}.png").stat().st_size > 10_000
