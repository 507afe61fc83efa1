"""Makes tiny_push beside it, with TensorFlow Datasets; run in a folder of its own: python -m make.make_tiny_push."""

import numpy as np
import tensorflow_datasets as tfds


class TinyPush(tfds.core.GeneratorBasedBuilder):
    """Two episodes of three and two steps; see tests/octo_teacher/data/test_data_rlds.py."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        observation = {
            "image": tfds.features.Image(shape=(16, 16, 3), dtype=np.uint8, encoding_format="png"),
            "wrist_image": tfds.features.Image(shape=(8, 8, 3), dtype=np.uint8, encoding_format="jpeg"),
            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
        steps = {
            "observation": tfds.features.FeaturesDict(observation),
            "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
            "reward": tfds.features.Scalar(dtype=np.float32),
            "is_last": tfds.features.Scalar(dtype=np.bool_),
            "language_instruction": tfds.features.Text(),
        }
        metadata = tfds.features.FeaturesDict({"file_path": tfds.features.Text()})
        features = {"steps": tfds.features.Dataset(steps), "episode_metadata": metadata}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode, length in enumerate((3, 2)):
            steps = []
            for t in range(length):
                v = 10 * episode + t
                observation = {
                    "image": np.full((16, 16, 3), [v, 2 * v, 100], np.uint8),
                    "wrist_image": np.full((8, 8, 3), 8 * v, np.uint8),
                    "state": np.array([v, -v], np.float32),
                }
                steps.append(
                    {
                        "observation": observation,
                        "action": np.array([v / 100] * 6 + [1.0], np.float32),
                        "reward": np.float32(t),
                        "is_last": t == length - 1,
                        "language_instruction": f"push cube {episode}",
                    }
                )
            yield str(episode), {"steps": steps, "episode_metadata": {"file_path": f"e{episode}"}}


if __name__ == "__main__":
    TinyPush(data_dir=".").download_and_prepare()
