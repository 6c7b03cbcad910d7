"""The page as a widget of notebooks."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets

from girih.explorer.page import as_json, script, style

_RENDER = """
function render({ model, el }) {
  const root = document.createElement("div");
  el.append(root);
  const explorer = mount(root, JSON.parse(model.get("payload")));
  explorer.state.on("selection", () => {
    model.set("selected", explorer.selectedNumbers());
    model.save_changes();
  });
}
export default { render };
"""


class ExplorerWidget(anywidget.AnyWidget):
    """An `ExplorerWidget` is the page of an `Explorer` as a widget.

    Attributes:
        selected: the numbers of the rows that are selected in the page, counted from 0.
    """

    _esm = traitlets.Unicode("").tag(sync=True)
    _css = traitlets.Unicode("").tag(sync=True)
    payload = traitlets.Unicode("{}").tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)

    @classmethod
    def of(cls, payload: dict[str, Any]) -> ExplorerWidget:
        """The widget of what a page shows."""
        return cls(_esm=script() + _RENDER, _css=style(), payload=as_json(payload))
