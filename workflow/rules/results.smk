# From metrics to what people look at.


rule aggregate:
    input:
        job=".plan/aggregate/{dataset}.json",
        files=files("aggregate"),
    output:
        long="results/leaderboard/{dataset}/long.csv",
        costs="results/leaderboard/{dataset}/costs.csv",
        leaderboard=report(
            "results/leaderboard/{dataset}/leaderboard.md",
            caption="../report/leaderboard.rst",
            category="Leaderboard",
            subcategory="Tables",
            labels={"data set": "{dataset}", "shows": "all metrics"},
        ),
        tables=report(
            directory("results/leaderboard/{dataset}/tables"),
            patterns=["{name}.csv"],
            caption="../report/table.rst",
            category="Leaderboard",
            subcategory="Tables",
            labels={"data set": "{dataset}", "shows": "{name}"},
        ),
        stamp="results/leaderboard/{dataset}/provenance.json",
    log:
        "results/logs/aggregate/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "leaderboard of {wildcards.dataset}"
    shell:
        "{params.stage}.aggregate {input.job} --threads {threads} > {log} 2>&1"


rule compare:
    input:
        job=".plan/compare/{dataset}.json",
        files=files("compare"),
    output:
        significance=report(
            directory("results/significance/{dataset}"),
            patterns=["critical_difference_{name}.svg"],
            caption="../report/significance.rst",
            category="Significance",
            labels={"data set": "{dataset}", "metric": "{name}"},
        ),
        stamp="results/significance/{dataset}.provenance.json",
    log:
        "results/logs/compare/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=STAGE,
    message:
        "significance on {wildcards.dataset}"
    shell:
        "{params.stage}.compare {input.job} --threads {threads} > {log} 2>&1"


rule figures:
    input:
        job=".plan/figures/{dataset}.json",
        files=files("figures"),
    output:
        figures=report(
            directory("results/figures/{dataset}/leaderboard"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="Leaderboard",
            subcategory="Figures",
            labels={"data set": "{dataset}", "shows": "{name}"},
        ),
        costs=report(
            directory("results/figures/{dataset}/costs"),
            patterns=["{name}.svg"],
            caption="../report/costs.rst",
            category="Leaderboard",
            subcategory="Accuracy and cost",
            labels={"data set": "{dataset}", "shows": "{name}"},
        ),
        stamp="results/figures/{dataset}/leaderboard.provenance.json",
    log:
        "results/logs/figures/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "figures of {wildcards.dataset}"
    shell:
        "{params.stage}.figures {input.job} --threads {threads} > {log} 2>&1"


rule summary:
    input:
        job=".plan/summary.json",
        files=files("summary"),
    output:
        metrics="results/summary/metrics.json",
        means="results/summary/means.csv",
        categories="results/summary/categories.csv",
        stamp="results/summary/provenance.json",
    log:
        "results/logs/summary.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        stage=STAGE,
    message:
        "summary of all leaderboards"
    shell:
        "{params.stage}.summary {input.job} --threads {threads} > {log} 2>&1"


rule sheet:
    input:
        job=".plan/sheet/{algorithm}/{dataset}.json",
        files=files("sheet"),
    output:
        sheet=report(
            directory("results/figures/{dataset}/sheets/{algorithm}"),
            patterns=["{name}.png"],
            caption="../report/sheet.rst",
            category="Anomaly maps",
            labels={"data set": "{dataset}", "algorithm": "{algorithm}"},
        ),
        stamp="results/figures/{dataset}/sheets/{algorithm}.provenance.json",
    log:
        "results/logs/sheet/{algorithm}/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=WARM,
    message:
        "anomaly maps of {wildcards.algorithm} on {wildcards.dataset}"
    shell:
        "{params.stage}.sheet {input.job} --threads {threads} > {log} 2>&1"


rule localisation:
    input:
        job=".plan/localisation/{algorithm}/{dataset}/{category}.json",
        files=files("localisation"),
    output:
        localisation=report(
            directory("results/figures/{dataset}/localisation/{algorithm}/{category}"),
            patterns=["{name}.png"],
            caption="../report/localisation.rst",
            category="Proportion Localised",
            labels={
                "data set": "{dataset}",
                "category": "{category}",
                "algorithm": "{algorithm}",
                "shows": "{name}",
            },
        ),
        stamp="results/figures/{dataset}/localisation/{algorithm}/{category}.provenance.json",
    log:
        "results/logs/localisation/{algorithm}/{dataset}/{category}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=STAGE,
    message:
        "Proportion Localised of {wildcards.algorithm} on {wildcards.dataset}/{wildcards.category}"
    shell:
        "{params.stage}.localisation {input.job} --threads {threads} > {log} 2>&1"


rule learning:
    input:
        job=".plan/learning/{algorithm}/{dataset}/{category}/seed{seed}.json",
        files=files("learning"),
    output:
        learning=report(
            directory("results/figures/{dataset}/learning/{algorithm}/{category}/seed{seed}"),
            patterns=["{name}.svg"],
            caption="../report/learning.rst",
            category="Learning",
            labels={"data set": "{dataset}", "category": "{category}", "algorithm": "{algorithm}"},
        ),
        stamp="results/figures/{dataset}/learning/{algorithm}/{category}/seed{seed}.provenance.json",
    log:
        "results/logs/learning/{algorithm}/{dataset}/{category}/seed{seed}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        gpu=USES_GPU,
    params:
        stage=WARM,
        module=module("learning"),
    message:
        "{wildcards.algorithm} while it learns {wildcards.dataset}/{wildcards.category}"
    shell:
        "{params.stage}.{params.module} {input.job} --threads {threads} > {log} 2>&1"


rule page:
    input:
        job=".plan/page/{page}.json",
        files=files("page"),
    output:
        page="docs/{page}.md",
        stamp="results/figures/page/{page}.provenance.json",
    log:
        "results/logs/page/{page}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "page docs/{wildcards.page}.md"
    shell:
        "{params.stage}.page {input.job} --threads {threads} > {log} 2>&1"


rule pictures:
    input:
        job=".plan/pictures/{dataset}.json",
        files=files("pictures"),
    output:
        pictures=directory("results/gallery/{dataset}/images"),
        stamp="results/gallery/{dataset}/images.provenance.json",
    log:
        "results/logs/pictures/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        stage=STAGE,
    message:
        "gallery images of {wildcards.dataset}"
    shell:
        "{params.stage}.pictures {input.job} --threads {threads} > {log} 2>&1"


rule gallery:
    input:
        job=".plan/gallery/{algorithm}/{dataset}.json",
        files=files("gallery"),
    output:
        gallery=directory("results/gallery/{dataset}/algorithms/{algorithm}"),
        stamp="results/gallery/{dataset}/algorithms/{algorithm}.provenance.json",
    log:
        "results/logs/gallery/{algorithm}/{dataset}.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=WARM,
    message:
        "gallery maps of {wildcards.algorithm} on {wildcards.dataset}"
    shell:
        "{params.stage}.gallery {input.job} --threads {threads} > {log} 2>&1"


rule report:
    input:
        job=".plan/report.json",
        files=files("report"),
    output:
        report=directory("results/report"),
        stamp="results/gallery/report.provenance.json",
    log:
        "results/logs/report.log",
    conda:
        "../envs/visionad.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        stage=STAGE,
    message:
        "report of all leaderboards"
    shell:
        "{params.stage}.report {input.job} --threads {threads} > {log} 2>&1"
