"""The pages in a real browser: what they show against the numbers of the model."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.explorer import Wanted, explorer_of
from girih.inference import DGN

RNG = np.random.default_rng(0)
KINDS = ["maximum", "convolutions", "branches", "plain"]


def network(kind, S):
    torch.manual_seed(1)
    if kind == "maximum":
        return nn.Sequential(
            nn.Linear(S, 12), nn.Hardtanh(), nn.Linear(12, 8), girih.networks.Maxout(2), nn.Linear(4, 5)
        )
    if kind == "convolutions":
        return nn.Sequential(
            nn.Linear(S, 3 * 2 * 2),
            nn.ReLU(),
            nn.Unflatten(1, (3, 2, 2)),
            nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1),
            nn.BatchNorm2d(2),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2, 2, 3, padding=1, stride=2, groups=2),
        ).eval()
    if kind == "branches":

        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(S, 6), nn.Linear(6, 6), nn.Linear(12, 4)

            def forward(self, z):
                h = torch.relu(self.a(z))
                return self.c(torch.cat((h + torch.relu(self.b(h)), 2.0 * h), 1)) - 0.5

        return Branches()
    return girih.mlp([S, 8, 8, 3], activation="leaky_relu", seed=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_computes_the_generator_and_its_maps(kind, opened):
    net = network(kind, 2).double()
    explorer = girih.explore(net, path=None)
    traced = girih.trace(net)
    z = torch.as_tensor(RNG.normal(size=(40, 2)))
    with opened(explorer) as page:
        found = page.ask(
            """return argument.map((z) => { const { x, A, b, pattern } = explorer.network.at(z);
            return [[...x], A.map((column) => [...column]), [...b], pattern.flatMap((codes) => [...codes])]; });""",
            z.tolist(),
        )
    A, b = traced.affine(z)
    scale = float(A.abs().max()) + float(b.abs().max())
    assert np.abs(np.array([one[0] for one in found]) - traced(z).detach().numpy()).max() < 1e-13 * scale
    assert np.abs(np.array([one[1] for one in found]) - A.mT.detach().numpy()).max() < 1e-13 * scale
    assert np.abs(np.array([one[2] for one in found]) - b.detach().numpy()).max() < 1e-13 * scale
    assert np.array_equal(np.array([one[3] for one in found]), traced.pattern(z).numpy())


def test_hovering_shows_the_cell_and_the_row_that_the_model_knows(opened):
    dgn = DGN(girih.mlp([2, 10, 10, 3], seed=4), noise=0.02)
    X = dgn().sample((60,), seed=1)
    explorer = girih.explore(dgn, X, path=None, beside={"group": ["a", "b", "c"] * 20})
    part = dgn.partition
    z = RNG.normal(size=(12, 2))
    cells = part.locate(z).tolist()
    A, b = part.affine
    with opened(explorer) as page:
        for x, y in z.tolist():
            page.page.mouse.move(*page.place(x, y))
            page.settle()
            held = page.ask("return { z: explorer.found.z, x: [...explorer.found.x], cell: explorer.found.cell };")
            text = page.page.locator(".card").inner_text()
            at = torch.tensor(held["z"], dtype=torch.float64)
            assert held["cell"] == int(part.locate(at[None])[0])
            assert np.allclose(held["x"], (A[held["cell"]] @ at + b[held["cell"]]).detach(), rtol=1e-12, atol=1e-13)
            assert abs(at[0] - x) < 0.02 and abs(at[1] - y) < 0.02  # the mouse stops at whole pixels
            assert f"Cell {held['cell']:,}" in text
            assert f"{float(part.prior_mass[held['cell']]):.4g}".rstrip("0") in text.replace("−", "-") or "e" in text
        located = page.ask("return argument.map(([x, y]) => explorer.layer.locate(x, y));", z.tolist())
        # a pixel of the ground belongs to the cell of its middle
        drawn = page.ask(
            """const { chart, ids } = explorer;
            const [w, h] = [Math.round(chart.width * chart.ratio), Math.round(chart.height * chart.ratio)];
            const middle = (at) => [(at % w + 0.5) * chart.width / w, (Math.floor(at / w) + 0.5) * chart.height / h];
            const some = Array.from({ length: 300 }, (_, k) => Math.floor((k + 0.5) * ids.length / 300));
            return some.map((at) => [chart.at(...middle(at)), ids[at]]);"""
        )
        row = page.ask("explorer.state.look(7); return explorer.rowValues();")
        page.settle()
        text = page.page.locator(".card").inner_text()
        spread = page.ask("return explorer.spreadOf(7);")
    assert located == cells
    points, ids = np.array([one[0] for one in drawn]), np.array([one[1] for one in drawn])
    assert (part.locate(points).numpy() == ids).mean() > 0.99  # but where an edge passes within a rounding
    posterior = dgn.posterior(X[7:8])
    covariance = posterior.covariance[0]
    assert "row 7" in text and row["values"] == pytest.approx(X[7].tolist(), rel=1e-6)
    assert np.allclose(spread, covariance[[0, 0, 1], [0, 1, 1]], rtol=1e-5)


def test_brush_and_list_select_the_same_rows(opened):
    dgn = DGN(girih.mlp([2, 8, 3], seed=0), noise=0.05)
    X = dgn().sample((200,), seed=3)
    mean = dgn.posterior(X).mean.numpy()
    low, high = np.array([-0.7, -0.9]), np.array([0.8, 0.6])
    with opened(girih.explore(dgn, X, path=None)) as page:
        mouse = page.page.mouse
        mouse.move(*page.place(low[0], high[1]))
        page.page.keyboard.down("Shift")
        mouse.down()
        mouse.move(*page.place(*((low + high) / 2)))
        mouse.move(*page.place(high[0], low[1]))
        mouse.up()
        page.page.keyboard.up("Shift")
        page.settle()
        chosen = page.ask("return explorer.selectedNumbers();")
        said = page.page.locator(".said").inner_text()
        page.page.get_by_label("selected only").check()
        page.settle()
        listed = page.ask("return [...explorer.sheet.order];")
        page.page.get_by_role("button", name="Clear").click()
        page.settle()
        after = page.ask("return [explorer.state.selected, explorer.sheet.order.length];")
        # sort by log p, and look at the first line
        page.page.get_by_role("button", name="log p").click()
        page.page.locator(".sheet tbody tr:not(.gap)").first.click()
        active = page.ask("return explorer.state.active;")
    margin = 0.02  # of a pixel or two
    surely = np.flatnonzero(((mean > low + margin) & (mean < high - margin)).all(1))
    perhaps = np.flatnonzero(((mean > low - margin) & (mean < high + margin)).all(1))
    assert set(surely) <= set(chosen) <= set(perhaps) and len(surely) > 20
    assert said == f"{len(chosen)} of 200 rows selected" and sorted(listed) == chosen and after == [None, 200]
    assert active == int(dgn().log_prob(X).argmin())


def test_the_keyboard_is_enough(opened):
    dgn = DGN(girih.mlp([2, 8, 3], seed=0), noise=0.05)
    X = dgn().sample((50,), seed=3)
    with opened(girih.explore(dgn, X, path=None)) as page:
        keys = page.page.keyboard
        page.page.locator(".plot canvas").last.focus()
        before = page.ask("return [explorer.chart.cursor, explorer.chart.view];")
        keys.press("ArrowRight")
        keys.press("Shift+ArrowUp")
        page.settle()
        moved = page.ask("return [explorer.chart.cursor, explorer.found.z];")
        keys.press("+")
        near = page.ask("return explorer.chart.view;")
        keys.press("0")
        home = page.ask("return explorer.chart.view;")
        page.ask("explorer.chart.point(explorer.points.x[9], explorer.points.y[9]);")
        keys.press("Enter")
        looked = page.ask("return explorer.state.active;")
        page.page.locator(".scroll").focus()
        keys.press("End")
        last = page.ask("return explorer.state.active;")
        keys.press(" ")
        chosen = page.ask("return explorer.selectedNumbers();")
        keys.press("Escape")
        cleared = page.ask("return explorer.state.selected;")
        # everything that can be clicked can be reached
        names = page.ask("return [...document.querySelectorAll('button, select, input')].map((one) => one.tabIndex);")
    (x, y), view = before
    step = np.array([view[1] - view[0], 5.0 * (view[3] - view[2])]) / 40.0
    assert np.allclose(moved[0], np.array([x, y]) + step) and np.allclose(moved[1], moved[0])
    assert near[1] - near[0] == pytest.approx(0.7 * (view[1] - view[0])) and home == pytest.approx(view)
    assert looked == 9 and last == 49 and chosen == [49] and cleared is None and min(names) >= 0


def test_the_line_shows_the_joint_density_and_the_curve(opened):
    dgn = DGN(girih.mlp([1, 12, 2], seed=3), noise=[0.01, 0.04])
    X = dgn().sample((80,), seed=2)
    z = np.linspace(-2.5, 2.5, 9)
    x = np.linspace(-1.0, 1.0, 9)
    with opened(girih.explore(dgn, X, path=None)) as page:
        found = page.ask(
            """return argument[0].map((z, k) => [explorer.layer.locate(z),
              explorer.ground.value(explorer.layer.locate(z), z, argument[1][k]), explorer.valueAt(z, 0)]);""",
            [z.tolist(), x.tolist()],
        )
        curve = page.ask("return explorer.curve;")
        page.page.get_by_label("height").select_option(label="log p")
        page.settle()
        heights = page.ask("return [...explorer.points.y];")
    value = dgn.trace(z[:, None])[:, 0].detach().numpy()
    normal = torch.distributions.Normal(torch.as_tensor(value), 0.1)
    joint = torch.distributions.Normal(0.0, 1.0).log_prob(torch.as_tensor(z)) + normal.log_prob(torch.as_tensor(x))
    assert [one[0] for one in found] == dgn.partition.locate(z[:, None]).tolist()
    assert np.allclose([one[1] for one in found], joint, rtol=1e-12)
    assert np.allclose([one[2] for one in found], value, rtol=1e-12)
    knots, bends = np.array(curve).T
    assert np.allclose(np.interp(z, knots, bends), value, atol=1e-12)
    assert np.allclose(heights, dgn().log_prob(X).detach(), rtol=1e-5, atol=1e-5)


def test_planes_of_many_latents(opened):
    net = girih.mlp([6, 10, 30], seed=5)
    latents = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explorer = girih.explore(net, net(latents).detach(), path=None, latents=latents, image_shape=(5, 6))
    with opened(explorer) as page:
        names = page.page.locator("select").first.locator("option").all_inner_texts()
        page.page.locator("select").first.select_option(index=2)
        page.settle()
        found = page.ask("const { z, x, cell } = explorer.at(0.3, -0.8); return [z, [...x], cell];")
        density = page.ask("return explorer.grounds[1].value(0, 0.3, -0.8);")
        places = page.ask("return [[...explorer.points.x], [...explorer.points.y]];")
        row = page.ask("explorer.state.look(3); return explorer.rowValues().values;")
        page.page.locator("summary", has_text="The map").click()
        page.settle()
        images = page.page.locator("canvas.image").count()
    i, j = (int(name[1:]) - 1 for name in names[2].split(" and "))
    z = np.zeros(6)
    z[i], z[j] = 0.3, -0.8
    assert found[0] == pytest.approx(z.tolist()) and found[2] >= 0
    assert np.allclose(found[1], net(torch.as_tensor(z)[None])[0].detach(), rtol=1e-12)
    assert density == pytest.approx(float(torch.distributions.Normal(0.0, 1.0).log_prob(torch.as_tensor(z)).sum()))
    assert np.allclose(places, latents[:, [i, j]].T, rtol=1e-6)
    values = net(latents)[3].detach().numpy()
    low, high = explorer.payload["range"]
    assert np.abs(row - np.clip(values, low, high)).max() <= (high - low) / 254
    assert images == 2 + 6 + 1  # g(z) and the row; the columns of A, and b


def test_maps_stand_in_for_a_network_that_is_too_heavy(opened, monkeypatch):
    import girih.explorer.generator as generator

    monkeypatch.setattr(generator, "_BYTES", 8 * 3 * 3 * 10)  # of ten cells
    monkeypatch.setattr(generator.network_spec, "__defaults__", (200,))
    monkeypatch.setattr(generator.map_spec, "__defaults__", (8 * 3 * 3 * 10,))
    net = girih.mlp([2, 8, 3], seed=0)
    part = girih.Partition(net)
    explorer = girih.explore(part, path=None)
    heaviest = part.prior_mass.argsort(descending=True)
    z = part.interior[heaviest]
    z = z[(z.abs() < 4).all(1)]
    with opened(explorer) as page:
        found = page.ask(
            """return argument.map((z) => explorer.at(...z)).map(({ cell, x }) => [cell, x && [...x]]);""",
            z.tolist(),
        )
        lead = page.page.locator(".notes").inner_text()
    known = [one for one in found if one[1] is not None]
    assert "holds the maps of 10 of 37 cells" in lead and len(known) < len(found)
    assert {cell for cell, _ in known} <= set(heaviest[:10].tolist())
    for cell, value in known:
        at = z[[one[0] for one in found].index(cell)]
        assert np.allclose(value, net(at[None])[0].detach(), rtol=1e-12)


@pytest.mark.parametrize(("width", "dark"), [(400, False), (900, True)])
def test_nothing_is_clipped_where_the_page_is_narrow(small_table, opened, width, dark):
    explorer = small_table[2]
    dgn = DGN(girih.mlp([2, 8, 3], seed=0), noise=0.05)
    for one in (explorer, girih.explore(dgn, dgn().sample((20,), seed=1), path=None)):
        with opened(one, width=width, height=800, dark=dark) as page:
            beyond = page.ask(
                """const all = [...document.querySelectorAll('.girih *')];
                const own = all.filter((one) => !one.closest('.scroll, .wide, .matrix'));
                const right = (one) => one.getBoundingClientRect().right;
                return own.filter((one) => right(one) > window.innerWidth + 1).map((one) => one.className);"""
            )
            scrolls = page.ask("return document.documentElement.scrollWidth;")
            theme = page.ask("return document.getElementById('explorer').dataset.theme;")
            plain = page.ask("return getComputedStyle(document.getElementById('explorer')).backgroundColor;")
        assert beyond == [] and scrolls <= width
        assert theme == ("dark" if dark else "light") and plain == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


def test_no_text_of_a_user_is_read_as_html(opened):
    dgn = DGN(girih.mlp([1, 6, 2], seed=0), noise=0.05)
    X = dgn().sample((10,), seed=1)
    bad = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
    wanted = Wanted(beside={bad: [bad] * 10}, columns=[bad, "ok"], title=bad)
    with opened(explorer_of(dgn, X, wanted)) as page:
        assert page.page.title() == bad and page.page.locator("h1").inner_text() == bad
        assert page.page.locator("img").count() == 0


def test_many_cells_and_rows_stay_quick_enough_to_draw(opened):
    """10,000 cells and 50,000 rows: the page is light, and a frame takes no longer than it may."""
    net = girih.mlp([2, 60, 60, 3], seed=1)
    part = girih.Partition(net, domain=(-6.0, 6.0))
    latents = torch.randn(50_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explorer = girih.explore(part, path=None, latents=latents)
    rows = len(explorer.html) - len(girih.explore(part, path=None).html)
    assert len(part) > 5_000 and len(explorer.html) - rows < 5_000_000 and rows < 3_000_000
    with opened(explorer) as page:
        page.ask("explorer.chart.setView([-1, 1, -1, 1]);")
        page.settle()
        assert page.ask("return explorer.rows.count;") == 50_000


def test_a_widget_tells_python_which_rows_are_selected(browser):
    pytest.importorskip("anywidget")
    dgn = DGN(girih.mlp([2, 8, 3], seed=0), noise=0.05)
    widget = girih.explore(dgn, dgn().sample((20,), seed=1), path=None).widget()
    page = browser.new_page()
    told = page.evaluate(
        """async ([code, style, payload]) => {
          const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
          const { default: widget } = await import(url);
          document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
          const told = {};
          const model = { get: () => payload, set: (name, value) => (told[name] = value), save_changes() {} };
          widget.render({ model, el: document.body });
          await new Promise((done) => requestAnimationFrame(done));
          const line = document.querySelector(".sheet tbody tr:not(.gap)");
          line.dispatchEvent(new MouseEvent("click", { ctrlKey: true, bubbles: true }));
          return told;
        }""",
        [widget._esm, widget._css, widget.payload],
    )
    page.close()
    assert told == {"selected": [0]}
