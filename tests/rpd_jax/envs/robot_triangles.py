"""How many triangles are drawn of a robot."""

from rpd_jax.envs.render_bodies import render_body

PANDA = 135_548


def count_triangles(entities) -> int:
    bodies = [render_body(entity) for entity in entities]
    return sum(len(part.triangles) for body in bodies if body for shape in body.render_shapes for part in shape.parts)


def robot_triangles(env) -> int:
    return count_triangles(link._objs[0].entity for link in env.unwrapped.agent.robot.links)
