"""A server that speaks as GR00T's does, with a small policy: groot_peer.py BEHAVIOUR [PORT]. Uses no code of ours.

Its action says what it was shown: the first pixel's red, green and blue, the prompt's length, width and the number of
frames in the request, 1. One that "tells the state" answers with the state instead, seven numbers an action.
"""

import io
import json
import os
import sys
import time

import msgpack
import numpy as np
import zmq

PARTS = {"eef_position": 3, "eef_rotation": 3, "gripper": 1}
LANGUAGE, OTHER = "annotation.human.task", "annotation.human.other"


class Server:
    def __init__(self, behaviour, port):
        self.behaviour, self.context, self.calls = behaviour, zmq.Context(), 0
        self.newer = behaviour == "newer"
        self.bind(port)

    def bind(self, port):
        self.socket = self.context.socket(zmq.PUB if self.behaviour == "is a PUB socket" else zmq.REP)
        self.socket.linger = 0
        if self.behaviour == "is encrypted":
            self.socket.curve_server, (_, self.socket.curve_secretkey) = True, zmq.curve_keypair()
        while True:
            try:
                self.port = port or self.socket.bind_to_random_port("tcp://127.0.0.1")
                if port:
                    self.socket.bind(f"tcp://127.0.0.1:{port}")
                return
            except zmq.ZMQError:  # the port of the one before is not free yet
                time.sleep(0.01)

    def pack(self, value):
        if isinstance(value, np.ndarray) and self.newer:
            told = {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape}
            return told | {b"data": value.tobytes()}
        if isinstance(value, np.ndarray):
            file = io.BytesIO()
            np.save(file, value, allow_pickle=False)
            return {"__ndarray_class__": True, "as_npy": file.getvalue()}
        raise TypeError(type(value))

    def unpack(self, found):
        if self.newer and b"nd" in found:
            return np.frombuffer(found[b"data"], found[b"type"]).reshape(found[b"shape"])
        if not self.newer and "__ndarray_class__" in found:
            return np.load(io.BytesIO(found["as_npy"]), allow_pickle=False)
        return found

    def run(self):
        while True:
            request = msgpack.unpackb(self.socket.recv(), object_hook=self.unpack)
            endpoint = request["endpoint"]
            self.calls += endpoint == "get_action"
            if endpoint == "get_action" and self.leaves():
                self.socket.close()
                self.bind(self.port)
                continue
            try:
                answer = self.answer(endpoint, request)
            except Exception as error:
                answer = {"error": str(error)}
            self.socket.send(answer if isinstance(answer, bytes) else msgpack.packb(answer, default=self.pack))

    def leaves(self):
        return self.behaviour == "closes at once" or (self.behaviour == "closes every third" and self.calls % 3 == 0)

    def answer(self, endpoint, request):
        if self.behaviour == "wants a key" and request.get("api_token") != "right":
            return {"error": "Unauthorized: Invalid API token"}
        if endpoint == "get_modality_config":
            return self.modalities()
        if endpoint != "get_action":
            raise ValueError(f"Unknown endpoint: {endpoint}")
        assert set(request["data"]) == {"observation", "options"} and request["data"]["options"] is None
        return RAW[self.behaviour]() if self.behaviour in RAW else [self.act(**request["data"]["observation"]), {}]

    def modalities(self):
        cameras = ["front", "wrist"] if self.behaviour == "two cameras" else ["front"]
        states = {"tells the state": ["arm", "gripper"], "wants a state": ["joints"]}.get(self.behaviour, [])
        moments = [-1, 0] if self.behaviour == "two moments" else [0]
        languages = [LANGUAGE, OTHER] if self.behaviour == "two instructions" else [LANGUAGE]
        kinds = {"video": (cameras, moments), "state": (states, [0]), "language": (languages, [0])}
        kinds["action"] = (list(PARTS), [0, 1])
        told = {kind: {"modality_keys": keys, "delta_indices": indices} for kind, (keys, indices) in kinds.items()}
        if self.behaviour == "no modalities":
            raise ValueError("Unknown endpoint: get_modality_config")
        if self.behaviour == "says nothing of its modalities":
            return {}
        if self.behaviour == "says odd modalities":
            return {"video": [1, 2]}
        mark = "__ModalityConfig__" if self.newer else "__ModalityConfig_class__"
        as_text = self.behaviour == "modalities as text"
        return {kind: {mark: True, "as_json": json.dumps(one) if as_text else one} for kind, one in told.items()}

    def act(self, video, state, language):
        frames, prompts = video["front"], language[LANGUAGE]
        assert frames.dtype == np.uint8 and frames.ndim == 5 and frames.shape[1] == 1 and frames.shape[4] == 3
        assert len(prompts) == len(frames) and all(len(one) == 1 and type(one[0]) is str for one in prompts)
        assert self.behaviour != "two instructions" or language[OTHER] == prompts
        rest = [len(prompts[0][0]) / 100, frames.shape[3] / 100, len(frames) / 100, 1.0]
        first = np.concatenate([frames[:, 0, 0, 0] / 255, np.tile(rest, (len(frames), 1))], axis=1)
        actions = np.stack([first, np.full_like(first, 9)], axis=1).astype(np.float32)
        if self.behaviour == "tells the state":
            parts = [state["arm"], state["gripper"]]
            assert all(part.dtype == np.float32 and part.shape[:2] == (len(frames), 1) for part in parts)
            assert parts[1].shape[2] == 2
            numbers = np.concatenate(parts, axis=2)[:, 0]
            actions = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % 7))).reshape(len(frames), -1, 7)
        if self.behaviour == "raises":
            raise RuntimeError("Traceback (most recent call last):\nValueError: Video key 'front' must be there")
        if self.behaviour == "fails" and self.calls > 12:
            raise RuntimeError("out of luck")
        if self.behaviour == "50 ms":
            time.sleep(0.05)
        if self.behaviour == "a second each":
            time.sleep(1.0)
        if self.behaviour == "NaN":
            actions[0, 0, 3] = np.nan
        if self.behaviour == "a frame less":
            actions = actions[:-1]
        if self.behaviour == "no chunk":
            actions = actions[:, :0]
        if self.behaviour == "text":
            actions = np.full(actions.shape, "a")
        if self.behaviour == "no batch":
            actions = actions[0]
        ends = np.cumsum([0, *PARTS.values()])
        answer = {name: actions[..., ends[i] : ends[i + 1]] for i, name in enumerate(PARTS)}
        if self.behaviour == "eight numbers":
            answer["gripper"] = np.repeat(answer["gripper"], 2, axis=-1)
        if self.behaviour == "lists":
            answer["gripper"] = answer["gripper"].tolist()
        if self.behaviour == "other keys":
            answer = {f"action.{name}": value for name, value in answer.items()}
        return answer


def claims():
    """An .npy file whose header claims 2^40 numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 1, 7)})
    return msgpack.packb([{"eef_position": {"__ndarray_class__": True, "as_npy": file.getvalue() + bytes(28)}}, {}])


def objects():
    """An .npy file with a pickle in it, which says so if anybody reads it."""
    file = io.BytesIO()
    np.save(file, np.array([Tripwire()], object), allow_pickle=True)
    return msgpack.packb([{"eef_position": {"__ndarray_class__": True, "as_npy": file.getvalue()}}, {}])


class Tripwire:
    def __reduce__(self):
        return os._exit, (77,)


RAW = {
    "claims 2^40 numbers": claims,
    "sends objects": objects,
    "sends too much": lambda: bytes((64 << 20) + 1),
    "sends no msgpack": lambda: b"\xc1",
    "sends a pickle": lambda: b"\x80\x04K\x01.",
    "sends ERROR": lambda: b"ERROR",
    "sends a number": lambda: msgpack.packb(7),
    "sends an empty error": lambda: msgpack.packb({"error": ""}),
}


if __name__ == "__main__":
    server = Server(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"listening {server.port}", flush=True)
    if server.behaviour == "is a PUB socket":
        time.sleep(600)
    server.run()
