import os,sys,time,traceback
os.environ.setdefault("JAX_PLATFORMS","cpu")
sys.path.insert(0,"tests")
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
from fuzz import functions as F, programs as Pr
from fuzz.calls import Spec
from fuzz.windows import InvalidCallError
import dataclasses
only=sys.argv[1:] 
for name,fn in F.FUNCTIONS.items():
    if only and name not in only: continue
    for i in range(6):
        rng=np.random.default_rng([i,7])
        for _ in range(30):
            n=int(rng.integers(1,4))
            s=fn.draw(rng,n)
            sizes=s.pop("_sizes")
            spec=Spec(name,sizes,((),(2,))[rng.integers(2)],int(rng.integers(1,4)),fn.dtypes[rng.integers(len(fn.dtypes))],("channels_last","channels_first")[rng.integers(2)],s,fn.backends[rng.integers(len(fn.backends))],(fn.hows or Pr.HOWS)[rng.integers(len(fn.hows or Pr.HOWS))],i)
            try: fn.make(spec); break
            except InvalidCallError: pass
        t=time.time()
        try:
            w=Pr.check(spec)
        except Exception as e:
            print(name,i,spec); traceback.print_exc(limit=-4); continue
        print(name,i,f"{time.time()-t:.2f}",spec.backend,spec.how,spec.dtype,len(w))
        for m in w[:3]: print("    ",m)
        if w: print("   ",spec)
