# From images to features: what is there, whether it can be used, what a backbone sees in it.


rule demo_data:
    input:
        job=".plan/demo_data/{dataset}/{category}.json",
    output:
        category=directory("data/{dataset}/{category}"),
        stamp="data/{dataset}/{category}.provenance.json",
    log:
        "results/logs/demo_data/{dataset}/{category}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "drawing {wildcards.dataset}/{wildcards.category}"
    shell:
        "{params.stage}.demo_data {input.job} --threads {threads} > {log} 2>&1"


rule index:
    input:
        job=".plan/index/{dataset}/{category}.json",
        files=files("index"),
    output:
        index="results/index/{dataset}/{category}.parquet",
        stamp="results/index/{dataset}/{category}.provenance.json",
    log:
        "results/logs/index/{dataset}/{category}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "indexing {wildcards.dataset}/{wildcards.category}"
    shell:
        "{params.stage}.index {input.job} --threads {threads} > {log} 2>&1"


rule check:
    input:
        job=".plan/check/{dataset}.json",
        files=files("check"),
    output:
        check="results/check/{dataset}/check.json",
        stamp="results/check/{dataset}/provenance.json",
    log:
        "results/logs/check/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        stage=STAGE,
    message:
        "checking {wildcards.dataset}"
    shell:
        "{params.stage}.check {input.job} --threads {threads} > {log} 2>&1"


rule features:
    input:
        job=".plan/features/{backbone}/{dataset}/{category}.json",
        files=files("features"),
    output:
        features="results/features/{backbone}/{dataset}/{category}.h5",
        stamp="results/features/{backbone}/{dataset}/{category}.provenance.json",
    log:
        "results/logs/features/{backbone}/{dataset}/{category}.log",
    retries: 1
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2500,
        gpu=USES_GPU,
    params:
        stage=WARM,
    message:
        "features of {wildcards.dataset}/{wildcards.category} by {wildcards.backbone}"
    shell:
        "{params.stage}.features {input.job} --threads {threads} > {log} 2>&1"


rule augment:
    input:
        job=".plan/augment/{backbone}/{dataset}/{category}.json",
        files=files("augment"),
    output:
        features="results/features/{backbone}/{dataset}/augmented/{category}.h5",
        stamp="results/features/{backbone}/{dataset}/augmented/{category}.provenance.json",
    log:
        "results/logs/augment/{backbone}/{dataset}/{category}.log",
    retries: 1
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2500,
        gpu=USES_GPU,
    params:
        stage=WARM,
    message:
        "features of augmented {wildcards.dataset}/{wildcards.category} by {wildcards.backbone}"
    shell:
        "{params.stage}.augment {input.job} --threads {threads} > {log} 2>&1"


rule teach:
    input:
        job=".plan/teach/{teacher}.json",
        files=files("teach"),
    output:
        model=directory("results/teachers/{teacher}/model"),
        training="results/teachers/{teacher}/training.json",
        stamp="results/teachers/{teacher}/provenance.json",
    log:
        "results/logs/teach/{teacher}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        gpu=USES_GPU,
    params:
        stage=WARM,
    message:
        "teaching {wildcards.teacher}"
    shell:
        "{params.stage}.teach {input.job} --threads {threads} > {log} 2>&1"
