"""Measures the kernels and the models beside their peers, on the machine at hand, into CSV files and plots.

``cli`` is the door (``visionattn benchmark kernels|simulator|models|data|plot``); ``cases`` says what is measured,
``timing`` how, ``records`` where it is kept; ``neighborhood`` with ``natten_peer`` and ``first_call``, the other
ops' modules with ``beside_timm``, ``simulator``, ``models`` and ``loading`` do the measuring;
``summary`` prints and ``plot`` draws what the CSV files hold.
"""
