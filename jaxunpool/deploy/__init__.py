"""d."""

def to_onnx(fn, inputs, **options):
    import jax2onnx
    import jaxunpool.deploy.plugin
    return jax2onnx.to_onnx(fn, inputs, **options)
