"""What SAPIEN draws of an entity: the shapes of its render body."""

from collections.abc import Iterable

import sapien
from sapien.render import RenderBodyComponent, RenderShape


def render_body(entity: sapien.Entity) -> RenderBodyComponent | None:
    """The body that is drawn of an entity, or None."""
    return entity.find_component_by_type(RenderBodyComponent)


def replace_body(
    entity: sapien.Entity, body: RenderBodyComponent, shapes: Iterable[RenderShape]
) -> RenderBodyComponent:
    """Draws other shapes in place of those of `body`; returns the new body, which is as visible and shaded alike."""
    replacement = RenderBodyComponent()
    for shape in shapes:
        replacement.attach(shape)
    replacement.visibility = body.visibility
    replacement.shading_mode = body.shading_mode
    replacement.name = body.name
    entity.remove_component(body)
    entity.add_component(replacement)
    return replacement
