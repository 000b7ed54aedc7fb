"""Writes reactions.json beside it: textbook reactions, and for each atom of the product where it comes from. Needs RDKit.

A reaction is a rule of RDKit applied to molecules, so that the origin of every atom is known from what the rule does, not
from a mapper. Atoms that symmetry makes equal count alike.
"""

import json
from pathlib import Path
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdChemReactions

RULES = {
    "amide": "[C:1](=[O:2])[OX2H].[NX3;H2,H1;!$(NC=O):3]>>[C:1](=[O:2])[N:3]",
    "ester": "[C:1](=[O:2])[OX2H].[OX2H;!$(OC=O):3]>>[C:1](=[O:2])[O:3]",
    "acylation": "[C:1](=[O:2])Cl.[NX3;H2,H1;!$(NC=O):3]>>[C:1](=[O:2])[N:3]",
    "sulfonamide": "[S:1](=[O:2])(=[O:4])Cl.[NX3;H2,H1:3]>>[S:1](=[O:2])(=[O:4])[N:3]",
    "alkylation": "[CX4;H2:1]Br.[OX2H;$(Oc):2]>>[C:1][O:2]",
    "suzuki": "[c:1]Br.[c:2]B(O)O>>[c:1][c:2]",
    "reductive amination": "[CX3;H1:1]=O.[NX3;H2,H1;!$(NC=O):2]>>[CH2:1][N:2]",
    "wittig": "[CX3;H1:1]=O.[C;H1,H2:2]=P(c1ccccc1)(c1ccccc1)c1ccccc1>>[C:1]=[C:2]",
    "diels-alder": "[C:1]=[C:2][C:3]=[C:4].[C:5]=[C:6]>>[C:1]1[C:2]=[C:3][C:4][C:5][C:6]1",
    "aromatic substitution": "[c:1]F.[NX3;H2,H1:2]>>[c:1][N:2]",
}
REACTIONS = [
    ("amide", "CC(=O)Nc1ccc(C(=O)O)cc1", "NCc1ccccc1Cl"),
    ("amide", "O=C(O)c1ccncc1", "CC(C)CN"),
    ("amide", "COc1ccc(CC(=O)O)cc1", "C1COCCN1"),
    ("ester", "O=C(O)c1ccccc1[N+](=O)[O-]", "CCCCO"),
    ("ester", "CC(C)Cc1ccc(C(C)C(=O)O)cc1", "OCC1CC1"),
    ("acylation", "O=C(Cl)c1ccc(F)cc1", "CCOC(=O)c1ccc(N)cc1"),
    ("acylation", "CC(C)C(=O)Cl", "Nc1cccc(C(F)(F)F)c1"),
    ("sulfonamide", "Cc1ccc(S(=O)(=O)Cl)cc1", "NCCc1ccc(O)cc1"),
    ("sulfonamide", "CS(=O)(=O)Cl", "C1CCNCC1"),
    ("alkylation", "BrCc1ccc(C#N)cc1", "COc1ccc(O)cc1"),
    ("alkylation", "CCOC(=O)CBr", "Oc1ccc(Cl)cc1C"),
    ("suzuki", "CC(=O)c1ccc(Br)cc1", "OB(O)c1ccccc1OC"),
    ("suzuki", "Brc1cccnc1", "OB(O)c1ccc(F)cc1"),
    ("reductive amination", "O=Cc1ccc(Br)cc1", "CN1CCNCC1"),
    ("reductive amination", "O=Cc1ccco1", "NC1CCCCC1"),
    ("wittig", "O=Cc1ccc([N+](=O)[O-])cc1", "CCOC(=O)C=P(c1ccccc1)(c1ccccc1)c1ccccc1"),
    ("wittig", "O=Cc1ccccc1Cl", "C=P(c1ccccc1)(c1ccccc1)c1ccccc1"),
    ("diels-alder", "C=C(C)C(=C)C", "C=CC(=O)OC"),
    ("aromatic substitution", "O=[N+]([O-])c1ccc(F)cc1", "NCCO"),
    ("aromatic substitution", "N#Cc1ccc(F)cc1", "C1CCNC1"),
]


def written(molecules: list[Any]) -> tuple[str, list[tuple[int, int]]]:
    """Canonical SMILES of molecules, sorted, and (molecule, atom) of each atom in the order in which it is written."""
    parts = []
    for number, molecule in enumerate(molecules):
        smiles = Chem.MolToSmiles(molecule)
        parts.append((smiles, [(number, atom) for atom in molecule.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]]))
    parts.sort()
    return ".".join(smiles for smiles, _ in parts), [place for _, order in parts for place in order]


def made(kind: str, *smiles: str) -> dict[str, Any]:
    """origin: for each atom of the product, the numbers of the reactants' atoms that it may come from."""
    reactants = [Chem.MolFromSmiles(each) for each in smiles]
    products = rdChemReactions.ReactionFromSmarts(RULES[kind]).RunReactants(reactants)
    if len({Chem.MolToSmiles(product) for (product,) in products}) != 1:
        raise SystemExit(f"{kind} of {smiles}: expected one product, got {len(products)}")
    product = products[0][0]
    Chem.SanitizeMol(product)
    left, places = written(reactants)
    right, order = written([product])
    classes = list(Chem.CanonicalRankAtoms(Chem.MolFromSmiles(left), breakTies=False))
    origin = []
    for _, atom in order:
        props = product.GetAtomWithIdx(atom).GetPropsAsDict()
        number = places.index((props["react_idx"], props["react_atom_idx"]))
        origin.append([other for other, same in enumerate(classes) if same == classes[number]])
    return {"kind": kind, "reaction": f"{left}>>{right}", "origin": origin}


if __name__ == "__main__":
    rows = ",\n".join(json.dumps(made(*each)) for each in REACTIONS)
    Path(__file__).with_name("reactions.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
