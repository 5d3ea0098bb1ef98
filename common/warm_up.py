"""Warm-up requests of a serving bundle: a TFRecord of PredictionLog, which a server runs before it answers.

The messages are written and read by hand, so that exporting does not need the package tensorflow-serving-api.
Field numbers: apis/prediction_log.proto, predict.proto and model.proto of TensorFlow Serving.
"""

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

FILE = "tf_serving_warmup_requests"


def write(path, requests):
    """Writes (signature name, {input name: array or TensorProto}) pairs."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(prediction_log(signature, inputs))


def read(path):
    """The (signature name, {input name: array}) pairs of a file that `write` wrote."""
    return [_parse(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]


def prediction_log(signature, inputs, model="model"):
    """A serialized tensorflow.serving.PredictionLog with one PredictRequest."""
    spec = _field(1, model.encode()) + _field(3, signature.encode())  # ModelSpec: name, signature_name
    request = _field(1, spec)
    for name, value in inputs.items():
        proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        entry = _field(1, name.encode()) + _field(2, proto.SerializeToString())
        request += _field(2, entry)  # map<string, TensorProto>
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _parse(record):
    (request,) = _fields(_fields(record)[6][0])[1]
    fields = _fields(request)
    signature = _fields(fields[1][0])[3][0].decode()
    inputs = {}
    for entry in map(_fields, fields[2]):
        inputs[entry[1][0].decode()] = tf.make_ndarray(tensor_pb2.TensorProto.FromString(entry[2][0]))
    return signature, inputs


def _field(number, content):
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _fields(message):
    """{number: contents} of a message that has length-delimited fields only."""
    fields, position = {}, 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key, size = varint(), varint()
        assert key & 7 == 2, "not length-delimited"
        fields.setdefault(key >> 3, []).append(message[position:position + size])
        position += size
    return fields
