"""``zeitgeist list`` and ``zeitgeist show``: what is here."""

from dataclasses import asdict

from zeitgeist import catalogue


def list_systems(*, area: str | None = None, json: bool = False) -> None:
    """List the systems that run here.

    Parameters
    ----------
    area
        Only the systems of this area, such as merging.
    json
        Print machine-readable records.
    """
    chosen = [s for s in catalogue.SYSTEMS if area in (None, s.area)]
    if not chosen:
        from zeitgeist.errors import InputInvalid

        areas = ", ".join(sorted({s.area for s in catalogue.SYSTEMS}))
        raise InputInvalid(f"no area is called {area!r}", mend=f"the areas are: {areas}")
    if json:
        from json import dumps

        print(dumps([asdict(s) for s in chosen], indent=2))
        return
    width = max(len(s.slug) for s in chosen)
    for system in chosen:
        print(f"{system.slug:<{width}}  {system.area:<8}  {system.purpose}")


def show(slug: str, /, *, json: bool = False) -> None:
    """Say what one system is for, with its paper, options and an example to paste.

    Parameters
    ----------
    slug
        The system's name in `zeitgeist list`.
    json
        Print a machine-readable record.
    """
    system = catalogue.find(slug)
    options = system.options()
    if json:
        from json import dumps

        record = asdict(system) | {
            "options": {name: [o._asdict() for o in rows] for name, rows in options.items()}
        }
        print(dumps(record, indent=2, default=str))
        return
    print(f"{system.title}\n{system.authors}. arXiv {system.arxiv}")
    print(f"Newsletter: {', '.join(system.sections)}. Area: {system.area}.\n")
    print(f"For: {system.purpose}.")
    for name, rows in options.items():
        print(f"\nOptions of {name}:")
        for option in rows:
            print(f"  {option.name} = {option.default}\n      {option.meaning}")
            if option.source:
                print(f"      default from: {option.source}")
    print(f"\nPython:  from {system.door.replace(':', ' import ')}")
    print(f"Shell:   {system.example}")
    print(f"Guide:   {system.page}\nStudy:   zeitgeist reproduce {system.slug}")
