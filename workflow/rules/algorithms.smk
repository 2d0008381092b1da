# One algorithm on one category with one seed: train, predict, evaluate.


rule train:
    input:
        job=".plan/train/{algorithm}/{dataset}/{category}/seed{seed}.json",
        files=files("train"),
    output:
        model=directory("results/models/{algorithm}/{dataset}/{category}/seed{seed}/model"),
        training="results/models/{algorithm}/{dataset}/{category}/seed{seed}/training.json",
        stamp="results/models/{algorithm}/{dataset}/{category}/seed{seed}/provenance.json",
    log:
        "results/logs/train/{algorithm}/{dataset}/{category}/seed{seed}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        gpu=USES_GPU,
    params:
        stage=WARM,
        module=module("train"),
    message:
        "training {wildcards.algorithm} on {wildcards.dataset}/{wildcards.category}, seed {wildcards.seed}"
    shell:
        "{params.stage}.{params.module} {input.job} --threads {threads} > {log} 2>&1"


rule predict:
    input:
        job=".plan/predict/{algorithm}/{dataset}/{category}/seed{seed}.json",
        files=files("predict"),
    output:
        maps="results/maps/{algorithm}/{dataset}/{category}/seed{seed}.h5",
        stamp="results/maps/{algorithm}/{dataset}/{category}/seed{seed}.provenance.json",
    log:
        "results/logs/predict/{algorithm}/{dataset}/{category}/seed{seed}.log",
    retries: 1
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        gpu=USES_GPU,
    params:
        stage=WARM,
    message:
        "predicting {wildcards.algorithm} on {wildcards.dataset}/{wildcards.category}, seed {wildcards.seed}"
    shell:
        "{params.stage}.predict {input.job} --threads {threads} > {log} 2>&1"


rule evaluate:
    input:
        job=".plan/evaluate/{algorithm}/{dataset}/{category}/seed{seed}.json",
        files=files("evaluate"),
    output:
        metrics=update(
            expand(
                "results/metrics/{{algorithm}}/{{dataset}}/{{category}}/seed{{seed}}/{metric}.json",
                metric=RUN.metrics,
            )
        ),
        stamp="results/metrics/{algorithm}/{dataset}/{category}/seed{seed}/provenance.json",
    log:
        "results/logs/evaluate/{algorithm}/{dataset}/{category}/seed{seed}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=WARM,
    message:
        "evaluating {wildcards.algorithm} on {wildcards.dataset}/{wildcards.category}, seed {wildcards.seed}"
    shell:
        "{params.stage}.evaluate {input.job} --threads {threads} > {log} 2>&1"


rule resample:
    input:
        job=".plan/resample/{algorithm}/{dataset}/{category}/seed{seed}.json",
        files=files("resample"),
    output:
        resampled=update("results/resampled/{algorithm}/{dataset}/{category}/seed{seed}.h5"),
        stamp="results/resampled/{algorithm}/{dataset}/{category}/seed{seed}.provenance.json",
    log:
        "results/logs/resample/{algorithm}/{dataset}/{category}/seed{seed}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=WARM,
    message:
        "resampling {wildcards.algorithm} on {wildcards.dataset}/{wildcards.category}, seed {wildcards.seed}"
    shell:
        "{params.stage}.resample {input.job} --threads {threads} > {log} 2>&1"
