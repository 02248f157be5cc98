# %% [markdown]
# # 3. Distillation
#
# **Goal.** See what a teacher knows besides its decision. Build the loss that hands it on, with its temperature and its T².
# Then measure when a student gains from it, when it does not, and what kind of copy it becomes.
#
# **Prerequisites.** Lesson 2. **Time.** 75 minutes to work through; the script runs in under a minute.
#
# Files to read along: `distill/kd.py` (the loss), `distill/train.py` (the loop), `distill/objective.py` (what can stand in
# place of the loss). As in lesson 2, everything is compared on validation images, over seeds, and the test set is for the
# end.

# %%
from pathlib import Path

import numpy as np
from figures import heat_map, softened_probabilities  # beside this file
from matplotlib.figure import Figure

import minidistill as md
from minidistill import datasets, distill, losses, nn, ops

FOLDER = Path("runs/lessons/03_distillation")
BLUE, RED, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#767676"


def new_figure(**names):
    """A figure with letters that can be read from the last row."""
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.set(**names)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E5E5E5")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=13)
    axis.xaxis.label.set_size(15)
    axis.yaxis.label.set_size(15)
    return figure, axis


def label(axis, text, at, colour, shift=(10, 0), ha="left"):
    """Text beside a point, in the colour of its curve."""
    axis.annotate(text, at, xytext=shift, textcoords="offset points", color=colour, fontsize=15, va="center", ha=ha)


def show(figure, name):
    """Write the figure into runs/lessons/03_distillation/, and show it if this is a notebook."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=120)
    if "get_ipython" in globals():
        from IPython.display import Image, display

        display(Image(str(FOLDER / name)))


SEEDS = range(5)
UPDATES = 500  # of every training, however much data it has
train, test = datasets.load_digits()
fitting, validation = train.split(0.8, rng=0)


def network(width, seed, rate=0.0):
    layers = [nn.Dense(64, width, activation="relu"), nn.Dropout(rate), nn.Dense(width, 10)]
    return nn.Sequential(*layers, rng=seed)


def epochs_for(data):
    return -(-UPDATES // -(-len(data) // 32))


def taught_by_labels(model, data, seed):
    md.fit(model, data, epochs=epochs_for(data), progress=False, rng=seed)
    return model


def taught_by(teacher, data, seed, **settings):
    """A new student of this teacher."""
    student = network(32, seed)
    distill.distill(teacher, student, data, epochs=epochs_for(data), progress=False, rng=seed, **settings)
    return student


def points(models, data=validation):
    """Accuracy of each model, in percent."""
    return np.array([100 * md.evaluate(model, data)["accuracy"] for model in models])


def told(values):
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f} %"


teachers = [taught_by_labels(network(256, seed, rate=0.2), fitting, seed) for seed in SEEDS]
teacher = teachers[0]
print(f"{len(fitting)} images to fit, {len(validation)} to compare on; teachers {told(points(teachers))}")

# %% [markdown]
# ## 3.1 What a hard label throws away
#
# A label says "this is a 1". The teacher says ten numbers, its logits. Divided by a *temperature* T before the softmax, they
# become softer probabilities.
#
# We look at the image of which the teacher is least sure, among those where it is right, and at one of which it is as sure
# as it usually is.
#
# **Predict.** How large is the largest probability of the usual image at T = 1? As T grows, can the order of the classes
# change? What is left at T = 1 000?

# %%
logits = md.predict(teacher, validation).astype(np.float64)
ordered = np.sort(logits, axis=1)
lead = ordered[:, -1] - ordered[:, -2]
right = logits.argmax(axis=1) == validation.y
unsure = int(np.argmin(np.where(right, lead, np.inf)))
usual = int(np.argsort(lead)[len(lead) // 2])


def softened(z, T):
    """Probabilities at temperature T, by the last axis."""
    e = np.exp((z - z.max(axis=-1, keepdims=True)) / T)
    return e / e.sum(axis=-1, keepdims=True)


def with_image(i):
    figure = softened_probabilities(logits[i])
    inside = figure.axes[-1].inset_axes([0.5, 0.5, 0.5, 0.5])
    inside.imshow(validation.x[i].reshape(8, 8), cmap="gray_r")
    inside.set(xticks=[], yticks=[])
    return figure


for name, i in (("unsure", unsure), ("usual", usual)):
    first, second = np.argsort(-logits[i])[:2]
    print(f"{name}: label {validation.y[i]}, logits", logits[i].round(1))
    for T in (1, 2, 4, 8, 1000):
        p = softened(logits[i], T)
        print(f"  T = {T:4}: {first} has {p[first]:.5f}, {second} has {p[second]:.5f}")
        assert np.array_equal(np.argsort(p), np.argsort(logits[i]))
    assert np.allclose(p, 0.1, atol=0.01)
show(with_image(unsure), "unsure.png")
show(with_image(usual), "usual.png")

assert softened(logits[usual], 1).max() > 0.99
assert softened(logits[usual], 8).max() < 0.9

# %% [markdown]
# The order stays; the ratios change. At T = 1 the usual answer is a label again. What the teacher thinks of the *wrong*
# classes is in the ratios of tiny probabilities, and the temperature makes it heard. Hinton calls it dark knowledge.
#
# ## 3.2 The loss by hand
#
# With teacher probabilities q and student probabilities p, both at temperature T:
#
# loss = α · T² · Σ q log(q / p) + (1 - α) · cross-entropy with the labels, at T = 1.
#
# The sum is over the classes; the batch is averaged. It is the KL divergence from the teacher to the student.
#
# **Predict.** The gradient of cross-entropy by the logits is p - t, prediction minus target. What is that of the soft term?
# Where does one T of the T² go?

# %%
batch = fitting[:64]
student_logits = md.predict(network(32, seed=0), batch).astype(np.float64)
teacher_logits = md.predict(teacher, batch).astype(np.float64)
N, C = student_logits.shape


def soft_loss(z, t, T):
    p, q = softened(z, T), softened(t, T)
    return T**2 * (q * np.log(q / p)).sum() / N


def soft_gradient(z, t, T):
    return T * (softened(z, T) - softened(t, T)) / N


T, alpha = 4.0, 0.9
way = np.random.default_rng(0).normal(size=(N, C))
ahead, behind = (soft_loss(student_logits + step * way, teacher_logits, T) for step in (1e-5, -1e-5))
measured, formula = (ahead - behind) / 2e-5, (soft_gradient(student_logits, teacher_logits, T) * way).sum()
print(f"slope along a random way: measured {measured:.8f}, from T (p - q) / N {formula:.8f}")
assert np.isclose(measured, formula, rtol=1e-6)

hard = -np.log(softened(student_logits, 1)[np.arange(N), batch.y]).mean()
by_hand = alpha * soft_loss(student_logits, teacher_logits, T) + (1 - alpha) * hard
engine = distill.kd_loss(student_logits, teacher_logits, batch.y, temperature=T, alpha=alpha).item()
print(f"loss by hand {by_hand:.10f}, kd_loss {engine:.10f}")
assert np.isclose(by_hand, engine, rtol=1e-10)


def engine_gradient(z, T):
    return md.grad(lambda z: distill.kd_loss(z, teacher_logits.astype(z.dtype), temperature=T, alpha=1.0))(z)


for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-7)):
    gap = np.abs(engine_gradient(student_logits.astype(dtype), T) - soft_gradient(student_logits, teacher_logits, T))
    print(f"{dtype.__name__}: largest difference from the formula {gap.max():.1e}")
    assert gap.max() < tolerance

# %% [markdown]
# Dividing by T inside costs the gradient one factor 1/T. Where does the other one come from? At a high temperature p and q
# both approach 1/C, and their difference shrinks like 1/T as well.
#
# **Predict.** Without the factor T², by how much does the gradient fall from T = 10 to T = 100? And *with* it, towards what
# does the gradient go? (softmax(z/T) is about (1 + (z - mean z)/T) / C.)

# %%
temperatures = np.geomspace(0.5, 200, 40)


def size(gradient):
    """Of the gradient of one image, on average."""
    return N * np.linalg.norm(gradient, axis=1).mean()


def centred(z):
    return z - z.mean(axis=1, keepdims=True)


kept = np.array([size(engine_gradient(student_logits, T)) for T in temperatures])
lost = kept / temperatures**2
hard = size(md.grad(lambda z: losses.cross_entropy(z, batch.y))(student_logits))
limit = (centred(student_logits) - centred(teacher_logits)) / (N * C)
fall = size(engine_gradient(student_logits, 10.0)) / size(engine_gradient(student_logits, 100.0)) * 100
print(f"from T = 10 to 100 without the factor: {fall:.0f} times smaller. At T = 200 with it: {kept[-1]:.3f}; "
      f"limit {size(limit):.3f}; hard labels {hard:.3f}")  # fmt: skip

figure, axis = new_figure(xlabel="temperature", ylabel="gradient of one image", xlim=(0.4, 4000), ylim=(2e-5, 30))
axis.axhline(size(limit), color=GREY, lw=2, ls=":", xmax=0.675)
axis.loglog(temperatures, kept, color=BLUE, lw=3)
axis.loglog(temperatures, lost, color=RED, lw=3)
axis.axhline(hard, color=GREEN, lw=2, ls="--", xmax=0.675)
label(axis, "T² · KL", (200, kept[-1]), BLUE, (10, 6))
label(axis, "hard labels", (200, hard), GREEN, (10, -8))
label(axis, "logit matching", (200, size(limit)), GREY, (10, 26))
label(axis, "KL alone", (200, lost[-1]), RED)
axis.minorticks_off()
axis.set_xticks([1, 10, 100], ["1", "10", "100"])
show(figure, "gradient.png")

assert 50 < fall < 200
assert hard / 5 < kept.min() and kept.max() < 5 * hard

z, t = centred(student_logits), centred(teacher_logits)
matching = md.grad(lambda z: distill.logit_matching(z, t))(z)
assert np.allclose(matching / 2, limit)
assert np.abs(engine_gradient(student_logits, 1e4) - limit).max() < 0.01 * np.abs(limit).max()

# %% [markdown]
# With T² the soft term stays as strong as the hard one, so α means the same at every temperature. And the limit is simple: at
# a high temperature the student is pulled towards the teacher's logits themselves, as by a squared error (equation 4 of the
# paper). At a low one only the probable classes count. The temperature moves between the two.
#
# ## 3.3 Mistakes that raise no error
#
# All of these were shipped by real projects. We write them by hand, since the engine would refuse some.
#
# **Predict.** Which ones only change the size of the gradient, and which its direction?


# %%
def kl(a, b, T=4.0):
    """KL(softmax(a/T) ‖ softmax(b/T)), summed over the classes, averaged over the batch."""
    log_p, log_q = ops.log_softmax(a / T), ops.log_softmax(b / T)
    return ops.sum(ops.exp(log_p) * (log_p - log_q)) / len(a)


recipes = {
    "as it should be": lambda z, t: 16 * kl(t, z),
    "no T²": lambda z, t: kl(t, z),
    "no T², mean over classes": lambda z, t: kl(t, z) / C,
    "KL reversed": lambda z, t: 16 * kl(z, t),
    "teacher's softmax twice": lambda z, t: 16 * kl(ops.softmax(t), z),
    "student's softmax twice": lambda z, t: 16 * kl(t, ops.softmax(z)),
}
half_way = network(32, seed=0)
md.fit(half_way, batch, epochs=10, progress=False, rng=0)
z, t = md.predict(half_way, batch).astype(np.float64), teacher_logits
good = engine_gradient(z, 4.0)
gradients = {name: md.grad(recipe)(z, t) for name, recipe in recipes.items()}
relative = {name: np.linalg.norm(g) / np.linalg.norm(good) for name, g in gradients.items()}
cosine = {name: (g * good).sum() / np.linalg.norm(g) / np.linalg.norm(good) for name, g in gradients.items()}
for name in recipes:
    print(f"{name:<26} size {relative[name]:.4f}, cosine with the right gradient {cosine[name]:.3f}")
assert np.isclose(relative["no T²"], 1 / 16) and np.isclose(relative["no T², mean over classes"], 1 / 160)
assert all(np.isclose(cosine[name], 1) for name in list(recipes)[:3])
assert cosine["teacher's softmax twice"] < 0.9

# %% [markdown]
# A softmax of a softmax is nearly uniform whatever the teacher says. The engine knows both sides of this mistake.
#
# **Predict.** How can it know? A probability is a number like any other.

# %%
refused = []
ends_in_softmax = nn.Dense(64, 10, activation="softmax", rng=0)
for name, sides in {"teacher": (z, softened(t, 1)), "student": (ends_in_softmax(batch.x), t)}.items():
    try:
        distill.kd_loss(*sides, alpha=1.0)
    except ValueError as error:
        refused.append(str(error))
        print(f"{name}: {error}\n")
assert "probabilities as the teacher's logits" in refused[0] and "output of a softmax" in refused[1]

# %% [markdown]
# Rows that are nowhere negative and all sum to 1 are no logits; and what came out of a softmax carries that on the tape.
#
# Wrong sizes cannot be detected: they are a wrong α. So let us see what they cost. The students have 100 labelled images.
#
# **Predict.** Draw validation accuracy against T: right, without T², and that as a mean over classes. Where do the wrong ones
# end?

# %%
few = [fitting[np.random.default_rng(seed).permutation(len(fitting))[:100]] for seed in SEEDS]
alone = [taught_by_labels(network(32, seed), few[seed], seed) for seed in SEEDS]
factors = {
    "right": lambda T: 1,
    "no T²": lambda T: 1 / T**2,
    "no T²,\nmean over classes": lambda T: 1 / (C * T**2),
}
temperatures = (1, 4, 16, 64)


def with_factor(factor, T, seed):
    terms = [distill.SoftTargets(T, weight=0.9 * factor(T)), distill.HardLabels(0.1)]
    return taught_by(teachers[seed], few[seed], seed, objective=terms)


curves = {
    name: np.array([points([with_factor(factor, T, seed) for seed in SEEDS[:3]]) for T in temperatures])
    for name, factor in factors.items()
}
baseline = points(alone[:3]).mean()
for name, curve in curves.items():
    print(" ".join(name.split()), [f"T = {T}: {told(values)}" for T, values in zip(temperatures, curve)])
print(f"hard labels alone: {baseline:.1f} %")

figure, axis = new_figure(xlabel="temperature", ylabel="validation accuracy, %", xscale="log", xlim=(0.9, 200))
for (name, curve), colour in zip(curves.items(), (BLUE, ORANGE, RED)):
    axis.plot(temperatures, curve.mean(axis=1), "o-", color=colour, lw=3, ms=9)
    if "mean" in name:
        label(axis, name, (4, curve[1].mean()), colour, (-12, -56), ha="center")
    else:
        label(axis, name, (64, curve[-1].mean()), colour, (14, 0))
axis.axhline(baseline, color=GREY, lw=2, ls=":")
label(axis, "hard labels alone", (1, baseline), GREY, (0, -14))
axis.set_ylim(bottom=baseline - 1)
axis.minorticks_off()
axis.set_xticks(temperatures, [str(T) for T in temperatures])
show(figure, "mistakes.png")

means = {name: curve.mean(axis=1) for name, curve in curves.items()}
assert means["right"][-1] > baseline + 2
assert means["right"][-1] > means["no T²"][-1] + 1
assert means["right"][-1] > means["no T²,\nmean over classes"][-1] + 2

# %% [markdown]
# Without T² the teacher falls silent as T rises, and the curve goes back to the hard labels. Such a project reports that
# distillation does not help much.
#
# ## 3.4 A digit that nobody showed
#
# Now an experiment of the paper (section 3). The student gets *no image of a 3*: no label, no picture. It gets the other
# digits, and what the teacher says of them. Lest the 3 be a lucky choice, we do the same with each of the ten.
#
# **Predict.** Of the 3s in the validation data, how many does it recognise at T = 1, at T = 4, at T = 16? Which digit is the
# hardest to learn from the others?

# %%
temperatures = (1, 4, 16)
unseen = np.empty((10, len(temperatures), 2))
for digit, row in np.ndindex(unseen.shape[:2]):
    others = datasets.Dataset(fitting.x[fitting.y != digit], None)
    settings = {"temperature": temperatures[row], "alpha": 1.0}
    students = [taught_by(teachers[seed], others, seed, **settings) for seed in SEEDS[:2]]
    unseen[digit, row] = points(students, validation[np.flatnonzero(validation.y == digit)])
means = unseen.mean(axis=2)
for digit, values in enumerate(means):
    print(f"no {digit} shown; recognised at", *(f"T = {T}: {v:.0f} %  " for T, v in zip(temperatures, values)))

figure, axis = new_figure(
    xlabel="temperature", ylabel="recognised of the digit\nthat nobody showed, %", xlim=(-0.1, 2.9)
)
axis.plot(means.T, color=GREY, lw=1.5, alpha=0.6)
axis.plot(means[3], "o-", color=RED, lw=3, ms=9)
axis.plot(means.mean(axis=0), "o-", color=BLUE, lw=3, ms=9)
hardest = int(means[:, -1].argmin())
label(axis, "the 3", (2, means[3, -1]), RED, (14, 6))
label(axis, "mean of the ten", (2, means[:, -1].mean()), BLUE, (14, -6))
label(axis, f"the {hardest}", (2, means[hardest, -1]), GREY, (14, -6))
axis.set_xticks(range(3), [str(T) for T in temperatures])
show(figure, "unseen.png")

assert means[:, 0].mean() < 20
assert means[:, -1].mean() > 60 and means[3, -1] > 70

# %% [markdown]
# At T = 1 the answers are labels again, and labels know nothing of 3s. At a higher temperature every other digit says how
# much it looks like a 3, and from that the student finds out what a 3 looks like. That is what the tiny probabilities hold.
#
# ## 3.5 Does it help?
#
# T = 4 and α = 0.9, fixed beforehand. Every training takes the same number of updates. A student has 100 labelled images:
#
# - hard labels of the 100;
# - soft targets on the same 100, from a teacher that saw all labels;
# - soft targets on all images, without labels, from the same teacher;
# - the same two from a teacher that saw *only the same 100 labels*: nobody knows more than the student could;
# - and, for those who have them, all the labels.
#
# **Predict.** Sort these six. Which two differ most? Does the second teacher help at all?

# %%
weak_teachers = [taught_by_labels(network(256, seed, rate=0.2), few[seed], seed) for seed in SEEDS]
unlabelled = datasets.Dataset(fitting.x, None)
cases = {
    "hard": "hard labels of 100 images",
    "weak": "soft, these 100 images; teacher of 100 labels",
    "weak, all": "soft, all images; teacher of 100 labels",
    "soft": "soft, these 100 images; teacher of all labels",
    "soft, all": "soft, all images; teacher of all labels",
    "hard, all": "hard labels of all images",
}
models = {
    "hard": alone,
    "weak": [taught_by(weak_teachers[seed], few[seed], seed) for seed in SEEDS],
    "weak, all": [taught_by(weak_teachers[seed], unlabelled, seed, alpha=1.0) for seed in SEEDS],
    "soft": [taught_by(teachers[seed], few[seed], seed) for seed in SEEDS],
    "soft, all": [taught_by(teachers[seed], unlabelled, seed, alpha=1.0) for seed in SEEDS],
    "hard, all": [taught_by_labels(network(32, seed), fitting, seed) for seed in SEEDS],
}
accuracy = {case: points(models[case]) for case in cases}
for case, text in cases.items():
    print(f"{text:<46} {told(accuracy[case])}")
print(f"the teachers themselves: of 100 labels {told(points(weak_teachers))}, of all {told(points(teachers))}")
fractions = {case: values / 100 for case, values in accuracy.items()}
figure = md.plot.label_study(fractions, cases, measured="validation accuracy, %")
show(figure, "study.png")

mean = {case: values.mean() for case, values in accuracy.items()}
assert mean["soft"] > mean["hard"] + 2
assert mean["soft, all"] > mean["hard"] + 4
assert abs(mean["weak"] - mean["hard"]) < 2.5
assert mean["weak, all"] < mean["soft"] - 1.5
assert abs(mean["soft, all"] - mean["hard, all"]) < 2

# %% [markdown]
# The gain is large, and it is what the teacher learnt from *labels that the student does not have*. A teacher of the same 100
# labels has next to nothing to give, and a student that has all labels can do without a teacher here. When you read that
# distillation adds so many points, ask what the teacher saw and how long the baseline was trained.
#
# ## 3.6 Which temperature?
#
# It depends on what? We try two transfer sets, the 100 images and all of them, and students of 6 to 48 hidden units.
#
# **Predict.** Where is the best temperature of the smallest student, and where that of the largest? In which of the two maps
# does the temperature matter more for the largest?

# %%
temperatures, widths = (1, 2, 4, 8, 16), (6, 16, 48)
maps = {}
for name, data in (("few", datasets.Dataset(few[0].x, None)), ("all", unlabelled)):
    settings = {"alpha": 1.0, "epochs": epochs_for(data)}
    maps[name] = distill.temperature_by_width(teacher, network, data, validation, temperatures, widths, **settings)
    best = maps[name].mean(axis=0).argmax(axis=0)
    print(f"{name}: best temperature", {width: temperatures[i] for width, i in zip(widths, best)})
show(heat_map(maps["few"], temperatures, widths), "temperature_few.png")
show(heat_map(maps["all"], temperatures, widths), "temperature_all.png")

high, low = ({name: values[:, rows].mean(axis=(0, 1)) for name, values in maps.items()} for rows in ([3, 4], [0, 1]))
rise = {name: 100 * (high[name] - low[name]) for name in maps}
for name, values in rise.items():
    print(f"{name}: T = 8 and 16 against 1 and 2, by width:", dict(zip(widths, values.round(1).tolist())))
assert rise["few"][-1] > 1 and abs(rise["all"][-1]) < 2.5
assert rise["all"][0] < -1

# %% [markdown]
# Each number is a mean over three initialisations, with one draw of the 100 images; look at the spread before you believe a
# frame. What survives it: with few images, a student that is large enough gains from a higher temperature, since each image
# then says more. With all images it gains next to nothing. The smallest one cannot follow all logits, and here had better
# follow the important ones: a low temperature. How large all this is differs from split to split (exercise 2). There is no
# best temperature as such, only one for a student, a teacher and a transfer set.
#
# ## 3.7 Is the student a copy?
#
# `distill.fidelity` compares decisions. We hold the students of 3.5 against a teacher: those of the strong teacher, those
# of the weak one, and those who never met the teacher they are compared with.
#
# **Predict.** A student of all hard labels never met the teacher. How often do the two agree? The student of the weak
# teacher saw only its answers: does it repeat its mistakes?

# %%
pairs = {
    "hard": ("hard labels of 100", teachers, GREY),
    "soft": ("soft targets on 100", teachers, ORANGE),
    "soft, all": ("soft targets on all", teachers, BLUE),
    "hard, all": ("all hard labels:\nnever met the teacher", teachers, GREEN),
    "weak, all": ("student of the\nweak teacher", weak_teachers, RED),
}
reports = {}
for case, (name, who, _) in pairs.items():
    each = [distill.fidelity(t, s, validation) for t, s in zip(who, models[case])]
    reports[case] = {key: np.array([report[key] for report in each]) for key in each[0]}
    shown = {key: f"{np.nanmean(values):.3f}" for key, values in reports[case].items() if key != "agreement_when_right"}
    print(f"{' '.join(name.split()):<44}", *(f"{key} {value}  " for key, value in shown.items()))
own = reports["weak, all"]["agreement_when_wrong"].mean()
strangers = [distill.fidelity(t, s, validation)["agreement_when_wrong"] for t, s in zip(weak_teachers, alone)]
stranger = np.mean(strangers)
print(f"mistakes of the weak teacher: its student repeats {own:.0%}, one that knows only its 100 labels {stranger:.0%}")

figure, axis = new_figure(xlabel="validation accuracy, %", ylabel="agreement with the teacher, %")
places = {"hard": (40, -8), "soft": (16, -26), "soft, all": (8, -30), "hard, all": (0, 58), "weak, all": (62, 2)}
for case, (name, _, colour) in pairs.items():
    x, y = (100 * reports[case][key] for key in ("student_accuracy", "agreement"))
    axis.plot(x, y, "o", ms=12, color=colour, alpha=0.6, mew=0)
    label(axis, name, (x.mean(), y.mean()), colour, places[case], ha="center" if case == "hard, all" else "left")
axis.margins(x=0.28, y=0.28)
axis.set_yticks(range(86, 101, 2))
show(figure, "fidelity.png")

average = {case: {key: np.nanmean(values) for key, values in report.items()} for case, report in reports.items()}
assert average["soft, all"]["agreement"] > average["hard"]["agreement"] + 0.04
assert average["hard, all"]["agreement"] > 0.96
assert average["weak, all"]["agreement"] > 0.95 > average["weak, all"]["student_accuracy"] + 0.02
assert own > stranger + 0.03

# %% [markdown]
# Agreement is not accuracy. The weak teacher has the faithful student, mistakes included. And agreement is no proof of
# copying: whoever learns from the same labels agrees with the teacher too, even on most of its few mistakes. What gives a
# copy away are mistakes that only its teacher makes: those of the weak one.
#
# So do students also take over *how sure* their teacher is? A model is *calibrated* if it is right in 90 of 100 cases when it
# says 90 %. The fourth panel is a newer objective: it standardizes each row of logits on both sides, so it compares their
# pattern and not their size.
#
# **Predict.** Which panel is worst? Does its accuracy tell?

# %%
standard = [distill.SoftTargets(2.0, weight=9.0, standardized=True), distill.HardLabels(0.1)]
sized = {
    "teacher": teachers,
    "hard labels": models["hard"],
    "soft targets": models["soft"],
    "standardized": [taught_by(teachers[seed], few[seed], seed, objective=standard) for seed in SEEDS],
}
pooled = {name: np.concatenate([md.predict(model, validation) for model in who]) for name, who in sized.items()}
repeated = datasets.Dataset(np.tile(validation.x, (len(SEEDS), 1)), np.tile(validation.y, len(SEEDS)))
errors = {name: 100 * md.training.metrics.expected_calibration_error(z, repeated.y, 10) for name, z in pooled.items()}
for name, error in errors.items():
    print(f"{name:<14} accuracy {told(points(sized[name]))}, calibration error {error:.1f} points")
show(md.plot.reliability_diagram(pooled, repeated, bins=10), "calibration.png")

assert errors["standardized"] > 3 * max(errors[name] for name in errors if name != "standardized")
assert points(sized["standardized"]).mean() > mean["hard"] + 2

# %% [markdown]
# How sure a model is, is the size of its logits. What the loss does not see, the student does not learn; accuracy does not
# see it either.
#
# ## 3.8 Beyond soft targets
#
# An objective is a term of the loss; `objective=[...]` adds them up. Hidden layers are named by path (`"0"` is the first
# layer of both), nothing is edited in either model. Any function of an *exchange*, what both said of one batch, is an
# objective: your own is one line, such as the last.
#
# The methods may differ by less than validation sets do. So here each of eight seeds has a split, a teacher and 100 images of
# its own, and methods are compared seed by seed.
#
# **Predict.** Which of these methods beat plain soft targets, and by how much of what those gained over hard labels?


# %%
def plain():
    return distill.KnowledgeDistillation(temperature=4.0, alpha=0.9)  # what distill does if it is given no objective


PLAIN, HINT = "plain soft targets, T = 4", "hard labels and a hint on the hidden layer"
objectives = {
    "hard labels": distill.HardLabels,
    PLAIN: plain,
    HINT: lambda: [distill.HardLabels(), distill.Hint("0", "0")],
    "plain, and a hint on the hidden layer": lambda: [plain(), distill.Hint("0", "0")],
    "plain, and who is like whom": lambda: [plain(), distill.SimilarityPreserving("0", "0", weight=100.0)],
    "decoupled": lambda: distill.DecoupledKD(temperature=4.0),
    "logit matching": distill.LogitMatching,
    "one's own line: Huber's loss on logits": lambda: lambda e: losses.huber(e.student, e.teacher),
}
tried, results = {name: [] for name in objectives}, {name: [] for name in objectives}
for seed in range(8):
    own_fitting, own_validation = train.split(0.8, rng=seed)
    hundred = own_fitting[np.random.default_rng(seed).permutation(len(own_fitting))[:100]]
    own_teacher = taught_by_labels(network(256, seed, rate=0.2), own_fitting, seed)
    for name, make in objectives.items():
        tried[name].append(taught_by(own_teacher, hundred, seed, objective=make()))
        results[name].extend(points(tried[name][-1:], own_validation))
results = {name: np.array(values) for name, values in results.items()}
gains = {name: values - results[PLAIN] for name, values in results.items() if name != PLAIN}


def verdict(gain):
    """Seed by seed, against plain soft targets."""
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    # With seven comparisons at once, two standard errors would find something by luck.
    clear = "better" if gain.mean() > 3 * error else "worse" if gain.mean() < -3 * error else "no clear difference"
    return f"{gain.mean():+.1f} ± {error:.1f}  {clear}"


for name, values in results.items():
    print(f"{name:<46} {told(values)}   {verdict(gains[name]) if name in gains else ''}")
fractions = {name: values / 100 for name, values in results.items()}
figure = md.plot.label_study(fractions, {name: name for name in results}, measured="validation accuracy, %")
show(figure, "objectives.png")

step = -gains["hard labels"].mean()
assert step > 2
assert results[HINT].mean() < results[PLAIN].mean() - 1.5
assert max(gain.mean() for gain in gains.values()) < step / 2

# %% [markdown]
# The ± of a difference is its standard error; below three of them the table claims nothing. The large step is from labels to
# a teacher's logits, in whatever form; what a later method adds to it is small beside that, if it is anything. A hint without
# the logits gives little of it here. The weights are first guesses, 500 updates are few, and the models are small and
# shallow, so this does not refute the papers. It does say what to try first.
#
# ## 3.9 Guards
#
# The worst mistakes train happily. Four of them:
#
# 1. a student that is built from a layer of its teacher;
# 2. a teacher in train mode, in a loop of one's own;
# 3. answers that were kept, of another teacher;
# 4. the same answers, and images that were shifted since.
#
# **Predict.** What would each of them do if nobody noticed? And how can kept answers know their teacher?

# %%
teacher.train()
noisy = teacher(batch.x)  # dropout is on
teacher.eval()
cache = distill.TeacherCache(teacher, fitting)
moved = datasets.Dataset(datasets.shift(fitting.x, 8, 8, rng=0), None)
thief = nn.Sequential(teacher.layers[0], nn.Dense(256, 10, rng=0))
before = {name: array.tobytes() for name, array in teacher.state_dict().items()}
fresh = network(32, seed=0)
attempts = {
    "share 2 parameters": lambda: distill.distill(teacher, thief, fitting, progress=False),
    "went through dropout": lambda: distill.kd_loss(fresh(batch.x), noisy, batch.y),
    "of another teacher": lambda: distill.distill(teachers[1], fresh, fitting, cache=cache, progress=False),
    "are not in it": lambda: distill.distill(teacher, fresh, moved, alpha=1.0, cache=cache, progress=False),
}
messages = {}
for words, attempt in attempts.items():
    try:
        attempt()
    except ValueError as error:
        messages[words] = str(error)
        print(f"{error}\n")
assert all(words in messages[words] for words in attempts)
assert {name: array.tobytes() for name, array in teacher.state_dict().items()} == before

mixed = np.random.default_rng(0).permutation(len(fitting))
assert np.array_equal(cache.answers(fitting[mixed]), md.predict(teacher, fitting)[mixed])

# %% [markdown]
# A cache knows its teacher by a hash of the weights, and each image by a hash of its pixels. So shuffling cannot get answers
# and images out of step, and nothing is trained before all is checked.
#
# ## 3.10 The end: the test set, once
#
# No setting of 3.5 was chosen by its validation accuracy. The winner of 3.8 is.
#
# **Predict.** Will the gains of 3.5 be the same on 500 new images? And that of the winner of 3.8?

# %%
final = {case: points(models[case], test) for case in cases}
for case, text in cases.items():
    print(f"{text:<46} {told(final[case])}   gain {final[case].mean() - final['hard'].mean():+.1f}")
winner = max(gains, key=lambda key: gains[key].mean())
gain = points(tried[winner], test) - points(tried[PLAIN], test)
print(f"winner of 3.8, {winner}: {verdict(gains[winner])} on validation, {verdict(gain)} on test")
assert final["soft"].mean() > final["hard"].mean() + 2
assert final["soft, all"].mean() > final["hard"].mean() + 5

# %% [markdown]
# ## What to take along
#
# - A teacher's logits say how classes resemble each other; a temperature makes it heard.
# - α · T² · KL(teacher ‖ student), summed over classes, plus (1 - α) · cross-entropy. T² keeps α meaningful.
# - The gain is knowledge that the student has no labels for. Ask what the teacher saw.
# - The temperature depends on the student and on the transfer set. Choose it on validation data.
# - Accuracy, agreement and calibration are three things. Look at all.
# - Plain soft targets first; then measure whether anything else adds to them.
#
# **Exercises.** 1. In 3.3, set α to 1 (leave the hard labels out) and repeat the curves with Adam, then with
# `optim.SGD`. Which optimizer forgives a missing T², and why? 2. Repeat 3.6 with `train.split(0.8, rng=1)` and five seeds.
# Which frames move, and which sentences below the maps would you still write? 3. Distil from
# `distill.Ensemble(weak_teachers)` on the unlabelled images. How much do five weak teachers know together, and what did the
# comparison of 3.5 become? 4. Repeat 3.8 with 1 000 updates: whom does longer training help? Then choose one of ten weights
# for the hint with three seeds, and judge it with ten others. 5. Write an objective in one line that matches only the
# teacher's two largest logits of each row. What does it forget, according to `fidelity`?
#
# **Read on.** `distill/hidden.py`, `relations.py` and `logits.py`: each method beside its paper's equation;
# `distill/sources.py` and `stages.py`: ensembles, invented samples, generations; `pipeline.py`: distillation before pruning
# and quantization. Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network". Ba & Caruana 2014, "Do Deep
# Nets Really Need to be Deep?". Romero et al. 2015, "FitNets". Zhao et al. 2022, "Decoupled Knowledge Distillation". Stanton
# et al. 2021, "Does Knowledge Distillation Really Work?". Guo et al. 2017, "On Calibration of Modern Neural Networks".
