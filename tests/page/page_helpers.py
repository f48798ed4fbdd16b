"""A small fit for tests of the page, and a browser that shows it."""

import json
import re
import shutil
import subprocess

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyrovae import BernoulliLikelihood, Blueprint, fit
from pyrovae.baselines import Comparison
from pyrovae.data import Data
from pyrovae.evidence import Refinement, evaluate
from pyrovae.page import Fit

HOSTILE = "</script><img src=x onerror=console.error(1)>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing")
needs_node = pytest.mark.skipif(NODE is None, reason="node is missing")


def make_fit(**changes):
    """Train on images of 3 x 4 bits with two latents for a moment, under hostile names."""
    pyro.set_rng_seed(0)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(180, 2, generator=generator)
    x = torch.bernoulli(torch.sigmoid(3 * z @ torch.randn(2, 12, generator=generator)), generator=generator)
    parts = {"train": x[:100], "validation": x[100:120], "test": x[120:]}
    indices = {f"{split}_index": torch.arange(len(part)) for split, part in parts.items()}
    labels = {split: (part[:, 0] + part[:, 1]).long() for split, part in parts.items()}
    data = Data("bits", **parts, shape=(3, 4), binarize="none", sha256="0", labels=labels, **indices)
    vae = Blueprint(12, 2, likelihood=BernoulliLikelihood, x=data.train, network=small_network).vae()
    return with_results(fit_of(vae, data, baselines=Comparison({}, "", {HOSTILE: (-3.0, 0.5)}), **changes))


def fit_of(vae, data, *, epochs=6, baselines=None, options=None, **changes):
    """Train a VAE and collect what the page needs."""
    options = {"elbo": Trace_ELBO(), "validation": data.validation, **(options or {})}
    history = fit(vae.model, vae.guide, data.train, epochs=epochs, **options)
    evaluation = evaluate(vae.model, vae.guide, data.test, num_particles=30, guide_particles=30)
    log_p = evaluation.marginal.log_marginal
    values = {
        "name": HOSTILE,
        "vae": vae,
        "data": data,
        "history": history,
        "summary": {"split": "test", **evaluation.summary(), "binarize": "none"},
        "values": log_p.value,
        "errors": log_p.std_error,
        "baselines": baselines or Comparison({}, "none here", {}),
        "about": [("data", HOSTILE)],
        "command": f"python scripts/train.py --out '{HOSTILE}'",
        "planned": epochs,
    }
    return Fit(**{**values, **changes})


def with_results(made, like=None):
    """Give a fit hostile names of classes, gaps of its guide that take no time, and slow results of an equal fit."""
    for name in () if like is None else ("calibration", "weighted_calibration", "predictive"):
        made.__dict__[name] = getattr(like, name)
    gaps = torch.linspace(0.5, 3.0, 10).double()
    made.__dict__["label_names"] = [HOSTILE, "B", "C"]  # of a cached property
    made.__dict__["refined"] = Refinement(*[gaps[:, None]] * 2, *[gaps] * 11)
    return made


def small_network(num_inputs, num_outputs):
    return torch.nn.Sequential(
        torch.nn.Linear(num_inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, num_outputs, bias=False)
    )


# Appended to page.js: waits for the plane, presses keys, moves, clicks, and tells the window around it what it saw.
PROBE = """
(async () => {
  for (let k = 0; k < 200 && !document.querySelector(".plane .place")?.textContent; k += 1) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const canvas = document.querySelector(".space canvas");
  const pixels = () => document.querySelector(".decoded canvas").toDataURL();
  const place = () => document.querySelector(".place").textContent;
  const seen = { width: window.innerWidth, page: document.documentElement.scrollWidth };
  [seen.before, seen.pixelsBefore] = [place(), pixels()];
  for (let k = 0; k < 3; k += 1) {
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", shiftKey: true, bubbles: true }));
  }
  [seen.after, seen.pixelsAfter] = [place(), pixels()];
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  seen.chosen = place();
  const point = (kind, x, y) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new PointerEvent(kind, { clientX: left + x * width, clientY: top + y * height }));
  };
  const datum = () => document.querySelectorAll(".decoded canvas")[1].toDataURL();
  seen.moved = [[0.3, 0.6], [0.7, 0.3]].map(([x, y]) => { point("pointermove", x, y); return [place(), pixels()]; });
  seen.clicked = {};
  for (let k = 0; k < 144; k += 1) {
    const before = place().split("row")[1];
    point("pointerdown", 0.15 + 0.07 * (k % 12), 0.05 + 0.07 * Math.floor(k / 12));
    if (place().split("row")[1] !== before) seen.clicked[parseInt(place().split("row")[1])] = [place(), datum()];
  }
  seen.images = document.querySelectorAll("img[src=x]").length;
  window.parent.postMessage(seen, "*");
})();
"""


def browse(page, folder, *, width=390):
    """Open a page in a frame of a width in Chromium; return what the probe saw, and the lines of the console."""
    (folder / "page.html").write_text(page)
    frame = f"""<!doctype html><body><iframe src="page.html" width="{width}" height="800" frameborder="0"></iframe>
    <script>addEventListener("message", (event) => {{ document.body.textContent = JSON.stringify(event.data); }});
    </script></body>"""
    (folder / "frame.html").write_text(frame)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=10000",
    ]
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    seen = re.search(r"\{.*\}", found.stdout, flags=re.S)
    assert seen is not None, found.stdout[-2000:] + found.stderr[-2000:]
    return json.loads(seen[0].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")), console
