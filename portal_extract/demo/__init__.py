"""An embedded portal: API and object store on loopback, with a simulated data set.

Nothing is imported here, so that the command line starts quickly; the parts are
:mod:`~portal_extract.demo.portal` (both servers), :mod:`~portal_extract.demo.simulate` (the data set),
:mod:`~portal_extract.demo.run` (the demo) and :mod:`~portal_extract.demo.preview` (its picture).
"""
