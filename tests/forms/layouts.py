"""Reports of our own wording in the layouts of hospitals, as MIMIC-CXR has them and beyond, and the sections of each.

Each layout is (name, text, sections); a section that is not named is empty."""

from __future__ import annotations

PAD = " " * 33
RULE = " " + "_" * 78

LAYOUTS: list[tuple[str, str, dict[str, str]]] = [
    (
        "all sections",
        f"""{PAD}FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old man with cough.

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___.

 FINDINGS:

 The heart is enlarged.  The lungs are clear.

 IMPRESSION:

 Large heart.  No
 pneumonia.
""",
        {
            "indication": "___ year old man with cough.",
            "technique": "Chest PA and lateral",
            "comparison": "___.",
            "findings": "The heart is enlarged. The lungs are clear.",
            "impression": "Large heart. No pneumonia.",
        },
    ),
    (
        "no findings",
        " INDICATION: Cough.\n \n IMPRESSION: No pneumonia.\n",
        {"indication": "Cough.", "impression": "No pneumonia."},
    ),
    (
        "no impression",
        " COMPARISON: None.\n \n FINDINGS: Clear lungs.\n",
        {"comparison": "None.", "findings": "Clear lungs."},
    ),
    ("impression alone", " IMPRESSION: No change.", {"impression": "No change."}),
    (
        "findings and impression",
        " INDICATION: Fall.\n\n FINDINGS AND IMPRESSION: No fracture. Clear lungs.\n",
        {"indication": "Fall.", "impression": "No fracture. Clear lungs."},
    ),
    ("findings/impression", " FINDINGS/IMPRESSION:\n\n Mild edema.\n", {"impression": "Mild edema."}),
    ("findings / impression, spaced", " FINDINGS / IMPRESSION: Mild edema.\n", {"impression": "Mild edema."}),
    ("impression and findings", " IMPRESSION AND FINDINGS: Mild edema.\n", {"impression": "Mild edema."}),
    (
        "combined, then an impression of its own",
        " FINDINGS AND IMPRESSION: Tube ends high. Clear lungs.\n\n IMPRESSION: High tube.\n",
        {"findings": "Tube ends high. Clear lungs.", "impression": "High tube."},
    ),
    (
        "wet read before the final report",
        f" WET READ: ___ ___ ___ 4:07 AM\n  Left effusion.\n{RULE}\n{PAD}FINAL REPORT\n"
        " FINDINGS: Effusion on the left.\n\n IMPRESSION: Small left effusion.\n",
        {"findings": "Effusion on the left.", "impression": "Small left effusion."},
    ),
    (
        "wet read with an impression, final report without",
        f" WET READ: ___ 4:07 AM\n IMPRESSION: Edema.\n{RULE}\n{PAD}FINAL REPORT\n FINDINGS: Clear lungs.\n",
        {"findings": "Clear lungs."},
    ),
    (
        "wet read, version",
        " WET READ VERSION #1 ___ 9:15 PM\n  Edema.\n\n FINDINGS: Edema.\n IMPRESSION: Mild edema.\n",
        {"findings": "Edema.", "impression": "Mild edema."},
    ),
    (
        "wet reads, two versions before the final report",
        f" WET READ: ___ 9:58 PM\n  Edema.\n WET READ VERSION #1 ___ ___ 9:15 PM\n IMPRESSION: None.\n{RULE}\n"
        f"{PAD}FINAL REPORT\n FINDINGS: Clear lungs.\n",
        {"findings": "Clear lungs."},
    ),
    (
        "wet read among the sections",
        " INDICATION: Cough.\n WET READ VERSION #1 ___ 9:15 PM\n  Edema.\n\n FINDINGS: Clear.\n IMPRESSION: Normal.\n",
        {"indication": "Cough.", "findings": "Clear.", "impression": "Normal."},
    ),
    (
        "a heading's word alone on a wrapped line",
        " FINDINGS: There are no acute\n findings\n in the chest, nor any change of the\n impression: all is well.\n",
        {"findings": "There are no acute findings in the chest, nor any change of the impression: all is well."},
    ),
    (
        "wet read after the impression",
        " IMPRESSION: Clear.\n\n WET READ: ___ 1:00 PM No edema.\n",
        {"impression": "Clear."},
    ),
    ("wet read alone", " WET READ: ___ ___ 11:20 PM\n  No pneumothorax.\n", {}),
    (
        "addendum after the report",
        " FINDINGS: Nodule.\n\n IMPRESSION: New nodule.\n\n ADDENDUM: Told to Dr. ___ at 5 p.m.\n",
        {"findings": "Nodule.", "impression": "New nodule."},
    ),
    (
        "addendum before the report",
        f"{PAD}FINAL ADDENDUM\n The line ends in the right atrium.\n{RULE}\n{PAD}FINAL REPORT\n FINDINGS: A line.\n\n"
        " IMPRESSION: Line in place.\n",
        {"findings": "A line.", "impression": "Line in place."},
    ),
    (
        "addendum with an impression of its own",
        f" FINDINGS: A line.\n\n IMPRESSION: Line in place.\n{RULE}\n ADDENDUM:\n IMPRESSION: Told by telephone.\n",
        {"findings": "A line.", "impression": "Line in place."},
    ),
    ("addendum alone", " ADDENDUM: The rib is broken.\n", {"impression": "The rib is broken."}),
    (
        "addendum and findings",
        " FINDINGS: Clear lungs.\n\n ADDENDUM: Told to Dr. ___.\n",
        {"findings": "Clear lungs."},
    ),
    (
        "provisional, then final",
        f" PROVISIONAL FINDINGS IMPRESSION (PFI): ___ 5:00 PM\n Edema.\n{RULE}\n{PAD}FINAL REPORT\n"
        " IMPRESSION: No edema.\n",
        {"impression": "No edema."},
    ),
    (
        "final, then provisional",
        f" IMPRESSION: No edema.\n{RULE}\n PFI: Edema.\n",
        {"impression": "No edema."},
    ),
    ("provisional alone", " PROVISIONAL FINDINGS IMPRESSION (PFI): Mild edema.\n", {"impression": "Mild edema."}),
    (
        "preliminary report alone",
        f"{PAD}PRELIMINARY REPORT\n FINDINGS: Edema.\n\n IMPRESSION: Mild edema.\n",
        {"findings": "Edema.", "impression": "Mild edema."},
    ),
    (
        "preliminary report, then final",
        f"{PAD}PRELIMINARY REPORT\n IMPRESSION: Edema.\n{PAD}FINAL REPORT\n"
        " FINDINGS: No edema.\n IMPRESSION: Normal.\n",
        {"findings": "No edema.", "impression": "Normal."},
    ),
    ("revised", f"{PAD}FINAL REPORT (REVISED)\n IMPRESSION: Normal.\n", {"impression": "Normal."}),
    ("repeated impression", " IMPRESSION: Edema.\n\n IMPRESSION: No edema.\n", {"impression": "No edema."}),
    ("repeated, the last one empty", " IMPRESSION: Edema.\n\n IMPRESSION:\n", {"impression": "Edema."}),
    (
        "empty heading before another",
        " FINDINGS:\n IMPRESSION:  Normal chest.\n",
        {"impression": "Normal chest."},
    ),
    (
        "underscores end the impression",
        f" IMPRESSION: Normal chest.\n{RULE}\n D: ___ T: ___\n",
        {"impression": "Normal chest."},
    ),
    (
        "underscores as placeholders",
        " COMPARISON:  ___\n\n IMPRESSION:\n ___\n Normal chest since ___.\n",
        {"impression": "___ Normal chest since ___."},
    ),
    (
        "no headings",
        f"{PAD}FINAL REPORT\n CHEST RADIOGRAPH\n \n The lungs are clear. No effusion.\n",
        {"last_paragraph": "The lungs are clear. No effusion."},
    ),
    ("one paragraph", "The lungs are clear. No effusion.", {"last_paragraph": "The lungs are clear. No effusion."}),
    (
        "the report below the comparison",
        " COMPARISON:  None.\n \n The lungs are clear.\n \n No effusion.\n",
        {
            "comparison": "None.",
            "findings": "The lungs are clear. No effusion.",
        },
    ),
    (
        "Windows line ends",
        " INDICATION: Cough.\r\n\r\n FINDINGS:\r\n Clear\r\n lungs.\r\n\r\n IMPRESSION:\r\n Normal.\r\n",
        {"indication": "Cough.", "findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "old Macintosh line ends",
        " FINDINGS: Clear.\r IMPRESSION: Normal.\r",
        {"findings": "Clear.", "impression": "Normal."},
    ),
    (
        "lower case",
        "indication: cough\n\nfindings: clear lungs.\n\nimpression: normal.\n",
        {"indication": "cough", "findings": "clear lungs.", "impression": "normal."},
    ),
    (
        "title case",
        "Clinical history: cough.\nComparison: None.\nFindings: Clear lungs.\nImpression: Normal.\n",
        {"indication": "cough.", "comparison": "None.", "findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "a heading's word begins a wrapped line",
        " FINDINGS: There are no suspicious\n findings. Our\n impression of mass remains.\n\n IMPRESSION: No mass.\n",
        {"findings": "There are no suspicious findings. Our impression of mass remains.", "impression": "No mass."},
    ),
    (
        "IMPRESSION of a sentence",
        " FINDINGS: Lines are in place.\n IMPRESSION of mass at the hilum.\n\n IMPRESSION: Hilar mass.\n",
        {"findings": "Lines are in place. IMPRESSION of mass at the hilum.", "impression": "Hilar mass."},
    ),
    (
        "no colons",
        "FINDINGS\nClear lungs.\n\nIMPRESSION\nNormal.\n",
        {"findings": "Clear lungs.", "impression": "Normal."},
    ),
    ("no colon, a list", " IMPRESSION 1. Edema. 2. Effusion.\n", {"impression": "1. Edema. 2. Effusion."}),
    (
        "a dash for the colon",
        " FINDINGS - Clear lungs.\n IMPRESSION - Normal.\n",
        {"findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "tabs",
        "\tFINDINGS:\tClear lungs.\n\tIMPRESSION\tNormal.\n",
        {"findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "numbered list",
        " IMPRESSION:\n\n 1.  Edema.\n\n 2.  PICC line: in place.\n 3.  Effusion.\n",
        {"impression": "1. Edema. 2. PICC line: in place. 3. Effusion."},
    ),
    (
        "parts of the body are no sections",
        " FINDINGS:\n LUNGS: Clear.\n HEART AND MEDIASTINUM: Normal.\n CHEST WALL: Normal.\n"
        " BONES: Old fracture.\n\n IMPRESSION: No change.\n",
        {
            "findings": "LUNGS: Clear. HEART AND MEDIASTINUM: Normal. CHEST WALL: Normal. BONES: Old fracture.",
            "impression": "No change.",
        },
    ),
    (
        "views as the heading",
        " HISTORY: Fever.\n \n PA AND LATERAL CHEST:  Clear lungs.\n \n CONCLUSION: Normal.\n",
        {"indication": "Fever.", "findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "views and a time as the heading",
        " PORTABLE AP CHEST, ___ AT 5:20 A.M.: Tube ends high.\n\n IMPRESSION: High tube.\n",
        {"findings": "Tube ends high.", "impression": "High tube."},
    ),
    (
        "a title with a colon",
        " CHEST, PA AND LATERAL:\n\n REASON FOR EXAM: Pain.\n\n FINDINGS: Clear.\n\n IMPRESSION: Normal.\n",
        {"indication": "Pain.", "findings": "Clear.", "impression": "Normal."},
    ),
    (
        "opinion",
        " CLINICAL INFORMATION: Cough.\n\n OPINION: Normal chest.\n",
        {"indication": "Cough.", "impression": "Normal chest."},
    ),
    (
        "history and reason",
        " HISTORY: Lymphoma.\n REASON FOR EXAMINATION: Fever.\n IMPRESSION: Normal.\n",
        {"indication": "Lymphoma. Fever.", "impression": "Normal."},
    ),
    (
        "recommendation and notification",
        " IMPRESSION: Nodule.\n\n RECOMMENDATION(S): CT in 3 months.\n\n"
        " NOTIFICATION: Dr. ___ by telephone at 10:15.\n",
        {"impression": "Nodule."},
    ),
    (
        "misspelt headings",
        " COMPARSION: None.\n FINDNGS: Clear.\n IMPRESSOIN: Normal.\n",
        {"comparison": "None.", "findings": "Clear.", "impression": "Normal."},
    ),
    (
        "an indication that lost its letter",
        " NDICATION: Cough.\n IMPRESSION: Normal.\n",
        {"indication": "Cough.", "impression": "Normal."},
    ),
    (
        "all in one line",
        "INDICATION: Cough. COMPARISON: None. FINDINGS: Clear lungs. IMPRESSION: Normal.",
        {"indication": "Cough.", "comparison": "None.", "findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "no blank after the colon",
        " FINDINGS:Clear lungs.\n IMPRESSION:Normal.\n",
        {"findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "findings after the impression",
        " IMPRESSION: Normal.\n\n FINDINGS: Clear lungs.\n",
        {"findings": "Clear lungs.", "impression": "Normal."},
    ),
    (
        "two examinations in one report",
        " CHEST, AP AT 5:00: Tube high.\n\n CHEST, AP AT 7:00: Tube in place.\n\n IMPRESSION: Tube now in place.\n",
        {"findings": "Tube high. CHEST, AP AT 7:00: Tube in place.", "impression": "Tube now in place."},
    ),
    (
        "signature",
        " IMPRESSION: Normal.\n\n DICTATED BY: ___\n ATTENDING RADIOLOGIST: ___\n",
        {"impression": "Normal."},
    ),
    ("nothing", "", {}),
    ("headings without texts", " INDICATION:\n FINDINGS:\n IMPRESSION:\n", {}),
    (
        "the findings below the indication",
        "INDICATION: Cough\nand fever.\n\nTwo views were obtained. Large left pleural effusion with atelectasis.\n\n"
        "IMPRESSION: Large left effusion.\n",
        {
            "indication": "Cough and fever.",
            "findings": "Two views were obtained. Large left pleural effusion with atelectasis.",
            "impression": "Large left effusion.",
        },
    ),
    (
        "the findings below headings that stand alone",
        " HISTORY:\n \n Cough.\n \n TECHNIQUE:\n\n PA and lateral.\n\n Left effusion.\n\n Large heart.\n\n"
        " COMPARISON:\n\n ___\n\n It is new.\n\n IMPRESSION:\n\n Effusion.\n",
        {
            "indication": "Cough.",
            "technique": "PA and lateral.",
            "findings": "Left effusion. Large heart. It is new.",
            "impression": "Effusion.",
        },
    ),
    (
        "a paragraph below the comparison, and findings",
        " COMPARISON: ___.\n\n Left effusion.\n\n FINDINGS: The heart is large.\n\n IMPRESSION: Large heart.\n",
        {"comparison": "___.", "findings": "The heart is large.", "impression": "Large heart."},
    ),
    (
        "a paragraph below the technique, findings and impression in one",
        " TECHNIQUE: Two views.\n\n Left effusion.\n\n FINDINGS AND IMPRESSION: The heart is large.\n",
        {"technique": "Two views.", "impression": "The heart is large."},
    ),
    (
        "a paragraph below the comparison of a wet read",
        f" WET READ: ___ 4:07 AM\n COMPARISON: None.\n\n Edema.\n{RULE}\n{PAD}FINAL REPORT\n IMPRESSION: Clear.\n",
        {"impression": "Clear."},
    ),
]
