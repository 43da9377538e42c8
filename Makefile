.PHONY: lint test audit bench peers

PYTHON ?= python
DATA ?= data/ml1m
OLD ?=

lint:
	ruff check
	ruff format --check
	mypy m3dist

test:
	$(PYTHON) -m pytest -n 2 --dist loadfile

# What is installed as a bill of materials (CycloneDX), and its known vulnerabilities; the tools have an environment of
# their own.
audit:
	@[ -x .audit/bin/pip-audit ] || { $(PYTHON) -m venv .audit && .audit/bin/pip install --quiet --retries 1 --timeout 15 \
	    "pip-audit>=2.7" "cyclonedx-bom>=5" 2>.audit/log; } || { \
	    echo "audit: pip-audit and cyclonedx-bom cannot be installed (.audit/log says why); it needs PyPI" >&2; exit 1; }
	.audit/bin/cyclonedx-py environment "$$(command -v $(PYTHON))" --output-file sbom.json
	@echo "sbom.json is written; looking for known vulnerabilities, which needs PyPI"
	@.audit/bin/pip-audit --skip-editable --path "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	    >.audit/report 2>&1; code=$$?; cat .audit/report; unknown=$$(grep -c "not found on PyPI" .audit/report); \
	    [ $$unknown -lt 20 ] || { echo "audit: $$unknown packages could not be looked up; PyPI does not answer" >&2; exit 1; }; \
	    exit $$code

# All sections; DATA is a folder that `m3dist prepare` made. OLD=benchmarks.json compares with an earlier run.
bench:
	$(PYTHON) -m benchmarks --data $(DATA) --python $(PYTHON) $(foreach x,a b c,--python .peers/$(x)/bin/python) \
	    --json benchmarks.json $(if $(OLD),--compare $(OLD))

# Environments of the peers' own: cornac wants numpy 2, rectools numpy 1, recbole an older Ray than m3dist.
peers:
	$(PYTHON) -m venv .peers/a && .peers/a/bin/pip install "implicit>=0.7" "cornac>=3" torch
	$(PYTHON) -m venv .peers/b && .peers/b/bin/pip install "recbole>=1.2" "scipy<1.12" "setuptools<81" kmeans_pytorch
	$(PYTHON) -m venv .peers/c && .peers/c/bin/pip install "rectools>=0.19"
