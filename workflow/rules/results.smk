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
            labels={"data set": "{dataset}"},
        ),
        tables=directory("results/leaderboard/{dataset}/tables"),
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
            labels={"data set": "{dataset}", "metric": "{name}"},
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
    message:
        "{wildcards.algorithm} while it learns {wildcards.dataset}/{wildcards.category}"
    shell:
        "{params.stage}.learning {input.job} --threads {threads} > {log} 2>&1"


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
