"""Exits 0 if SAPIEN can render a picture on this machine; system_packages.sh asks it before the package is there."""

import sapien


def main() -> None:
    scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem()])
    camera = scene.add_camera(name="probe", width=8, height=8, fovy=1.0, near=0.01, far=10.0)
    scene.update_render()
    camera.take_picture()
    assert camera.get_picture("Color").shape == (8, 8, 4)


if __name__ == "__main__":
    main()
