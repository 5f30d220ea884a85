"""The words that `hf_cxr.inference.labeler` reads by: how each finding is said, the cues around it, sides and heights,
and the vocabulary that follows from them. Tables only; the reading is done there.

The idea of the cues is NegEx's (Chapman et al., J Biomed Inform 2001: cue, scope, terminator) with the classes of the
CheXpert labeler (Irvin et al., AAAI 2019); the lists are our own, tuned on Indiana reports (`benchmarks/labeler.py`).
Standard library only: a checkpoint brings this file.
"""

from __future__ import annotations

import re

PLACEHOLDER = r"(?<![A-Za-z])X{3,}"
_HIDDEN = (
    r"\s?(?i:anon(?:ymi[sz]ed)?|de-?identified|redacted|removed|masked|mask|unk(?:nown)?|person|patient|doctor"
    r"|physician|(?:(?:first|last|patient|doctor)[ _-])?name|date|time|age|location|loc|hospital|institution"
    r"|organi[sz]ation|address|phone|id|mrn)(?:[ _-]?\d{1,8})?\s?"
)
PLACEHOLDERS = {
    "XXXX": PLACEHOLDER,  # the Indiana collection
    "___": r"_{2,}|(?<!\w)_(?: _){1,20}(?!\w)",  # MIMIC-CXR and what was made from it
    "[** **]": r"\[\*\*[^\]]{0,80}\*\*\]",  # the program of PhysioNet: "[**Hospital1 18**]", "[**2101-3-4**]"
    "<ANON>": rf"<{_HIDDEN}>",  # and <NAME>, <DATE>, <unk> …, as other programs write
    "[REDACTED]": rf"\[{_HIDDEN}\]",
    "*****": r"\*{3,}",
}
"""What de-identification put in place of a name, a date and much else: kind → pattern without capturing groups."""

# fmt: off
PARENTS: dict[str, str] = {
    # CheXpert's hierarchy, then our finer names below the CheXpert name that would hold them.
    "cardiomegaly": "enlarged cardiomediastinum", "lung lesion": "lung opacity", "edema": "lung opacity",
    "consolidation": "lung opacity", "atelectasis": "lung opacity", "pneumonia": "consolidation",
    "nodule": "lung lesion", "granuloma": "lung lesion", "vascular congestion": "edema", "heart failure": "edema",
    "rib fracture": "fracture", "compression fracture": "fracture", "pacemaker": "support devices",
    "catheter": "support devices",
}
# fmt: on
"""Child → parent, for a CheXpert-style roll-up; `label` climbs it only when told to."""

# finding: ways of saying it, as a regular expression that starts at a word and holds no capturing group. The leftmost
# match wins, then the first line; "a + b" says both; "<3>" stands for up to three words that are no connectors.
# "_other" is no finding: it only speaks against a normal study.
WORDS = r"""
pneumothorax + pleural effusion: (?:hydro|hemo)pneumothora(?:x|ces)
pneumothorax: (?:tension )?pneumothora(?:x|ces)|ptx\b|pleural air\b|air in the pleural
pleural effusion + pericardial effusion: pleural (?:or|and|and/or|/) ?pericardial effusions?
pericardial effusion: pericardial (?:effusion|fluid)
pleural effusion: (?:pleural )?(?:effusions?\b|fluid collection)|pleural fluid
    |fluid in the (?:(?:right|left) )?pleural|h[ae]?emothorax|hydrothorax
blunted costophrenic angle: blunt(?:ing|ed)<4> (?:costophrenic|sulc|cp angle)|costophrenic<4> blunt
pleural other + scar: pleur(?:al|o)[ -]?(?:parenchymal )?scar\w*|scarring of the pleura
pleural other: pleural(?: \w+){0,2}?[ -](?:thickening|plaque|calcification|capping|disease|mass)\w*
    |thickening of the pleura|(?:bi)?apical (?:pleural )?cap(?:ping|s)?\b|fibrothorax
cardiomegaly: cardiomegaly|(?:cardiac|heart|cardio-?pericardial)(?: silhouette)?(?: size)? (?:enlargement|prominence)
    |enlarge(?:d|ment of)(?: the)?(?: cardiac| heart| cardio-?pericardial| cardio ?-?mediastinal)
    |(?:ctr|cardio-?thoracic ratio)(?: (?:is|was|at|of))?(?: (?:mildly|slightly))? (?:increased|enlarged|raised|>
    |0\.(?:5[1-9]|[6-9]))
    |(?:left |right )?ventricular (?:enlargement|prominence)|(?:prominent|big|large) (?:heart|cardiac)\b
enlarged cardiomediastinum: (?:wid(?:e|ened|ening of)|prominent|enlarged|prominence of)<2> mediastin\w+
    |mediastinal (?:widening|enlargement|prominence|mass|shift)
    |mediastin(?:um|al contours?|al silhouette) (?:is|are|appears?|remains?)<1> (?:widened|enlarged|prominent)
subcutaneous emphysema: (?:subcutaneous|soft tissue|surgical|chest wall) (?:emphysema|air|gas)
emphysema: (?:centrilobular |bullous )?emphysema\w*|bullous|bullae?\b|blebs?\b
copd: copd|chronic obstructive|obstructive (?:lung|pulmonary|airways?) disease
hyperinflation: hyper-?(?:inflat|expan|aerat|distend|distent|lucen)\w*|over-?(?:inflat|expan|aerat)\w*|air[- ]trapping
    |flatten(?:ed|ing)<4> (?:hemi)?diaphragm\w*|(?:hemi)?diaphragms? (?:is|are|appears?)<1> flattened
low lung volumes: (?:low|small|decreased|diminished|reduced|shallow|poor) (?:lung|inspiratory|inspired) (?:volume
    |effort)s?
    |low volumes?\b
    |lung volumes (?:are|remain|is|appear)<2> (?:low|small|decreased|diminished|reduced)
    |hypo-?(?:inflat|ventilat|aerat|expan)\w*|under-?(?:inflat|expan|aerat)\w*
    |(?:shallow|poor|low|suboptimal|limited) inspir\w*
edema: (?:(?:pulmonary|interstitial|alveolar) ){0,3}o?edema\w*|(?:fluid|volume) overload
heart failure: (?:congestive )?(?:heart|cardiac) failure|chf\b
    |(?:early|congestive|(?:left |right )?ventricular) failure|failure(?= pattern)|(?:cardiac|heart) decompensation
vascular congestion: (?:(?:pulmonary|central|venous|vascular|hilar|perihilar) ){0,4}(?:congest(?:ion|ed)|engorgement)
    |(?:(?:pulmonary|venous|vascular) ){0,3}(?:cephali[sz]ation|redistribution)|upper lobe (?:blood )?diversion
    |(?:vascular|venous) prominence
    |(?:pulmonary )?(?:vascul(?:ar|arity|ature)|vessels)(?: is| are)?<1> (?:congest|engorge|increased|enlarged
    |prominen)\w*
    |pulmonary (?:is|are|appears?) engorged|pulmonary venous hypertension
    |(?:prominent|engorged|congested|increased)(?: central| hilar| lung)?(?: pulmonary)? (?:vascul|vessel)\w*
pneumonia: (?:broncho)?pneumonias?\b|pneumonitis|pneumonic|infect(?:ion|ious|ive)\w*
tuberculosis: tubercul(?:osis|ous)|tb\b
consolidation: (?:air ?-?space |alveolar )?consolidat\w+
atelectasis: atelecta\w+|(?:lobar|lobe|segmental|lung) collapse|collapsed? (?:[\w-]+ ){0,5}?(?:lung|lobe)
    |collapse\b(?! of (?:the )?(?:\w+ )?(?:vertebra|[tl]\d))
granuloma: granuloma\w*(?: infection| pneumonia)?|histoplasmosis
nodule: (?:micro)?nodul(?:e|es|arity)\b|fibro-?nodular
    |nodular(?: \w+)? (?:densit|opacit|shadow|lesion|foc|mass|area|calcif|appear|process)\w*
_other: (?:osseous|bon[ey]|lytic|sclerotic|blastic|skeletal)(?: \w+)? (?:lesion|metasta)\w*
lung lesion: mass(?:es)?\b|lesions?\b|neoplas\w+|tumou?rs?\b|malignan\w+|metasta\w+
    |carcinoma|cavit(?:y|ary|ies|ation)\w*
_other: cystic fibrosis
interstitial disease: pulmonary fibrosis|interstitial|prominen\w+<3> interstitium
    |reticul(?:ar|ation|onodular)\w*|fibrosis|fibrotic|honeycomb\w*
lung opacity: opaci\w+|(?:air|alveolar) ?-?space (?:disease|process)\w*|infiltrat\w*|alveolar (?:disease|process)
    |parenchymal (?:disease|process|densit)\w*
bronchiectasis: bronchiectas\w+|bronchiectatic
scar: scar(?:s|ring|red)?\b|cicatri\w+
compression fracture: compression (?:fracture|deformit|injur)\w*|wedg(?:e|ing) (?:deformit|fracture|compression)\w*
    |wedging|(?:thoracic|lumbar|vertebral?)(?: spine| vertebra\w*| bod(?:y|ies)| multilevel| scattered)* deformit\w+
    |(?:vertebral?|spine|spinal|thoracic|lumbar|[tl]\d+)<3> (?:fractures?|wedging|collapse
    |compression(?: fracture\w*| deformit\w*)?)\b|(?:fractures?|compression|deformit\w+|loss)<6> (?:vertebra\w*
    |spine|[tl]\d+|thoracic body)\b|loss of height
rib fracture: ribs?<2> fractur(?:ed?|es)\b|fractur(?:ed?|es)<3> ribs?\b
    |fractures? (?:of|involving|in|through)(?:,? (?!or\b|no\b|with)[\w-]+){1,9}? ribs?\b
_other: (?:catheter|wire|lead|screw|rod|plate)s?(?: is| are)? fractur\w+
    |fractured?(?: of)?<4> (?:catheter|wire|lead|screw|rod|plate)s?\b
fracture: fractur\w+
pacemaker: pace-?makers?\b|ppm\b|crt-?[dp]\b|pacers?\b|pacing|a?icds?\b|defibrillators?\b|cardiac devices?\b
    |(?:cardiac |pulse )?generator
sternotomy: (?:median )?sternotom\w+|sternal wires?|cabg|coronary (?:artery )?bypass
catheter: catheters?\b|swan[ -]?ganz|cv[cl]s?\b|(?:cvp|jugular|ij|hickman|broviac|arterial|umbilical)<1> lines?\b
    |(?:hickman|broviac|perm-?a-?cath|vas-?cath|u[av]c)\b|port-?a-?cath\w*|medi-?port\w*|picc
    |central (?:venous )?lines?|lines? tip|dialysis
    |(?:subclavian|jugular|chest|infusion) (?:\w+ )?(?:port|line)s?\b|(?:vp |ventriculo-?peritoneal )?shunt
    |tips?(?: [\w-]+){0,6}? (?:svc|vena cava|cavoatrial|caval)
support devices: (?:[\w-]{1,20} )??tub(?:es?|ing)\b|tracheostomy|trach\b|stents?\b|hardware|support devices?
    |lines and tubes
    |(?:ett|ngt|ogt|iabp|ecmo|impella|[lrb]?vads?|balloon pump|dob-?b?hoff)\b
    |(?:chest |pigtail |intercostal |mediastinal )?drains?\b|intubated
    |stimulators?\b
    |(?:monitor(?:ing)?|ekg|ecg|telemetry|pacing) (?:leads?|wires?)|(?:prosthetic|artificial|mechanical)<1> valve\w*
    |valv\w* (?:replacement|prosthesis)|(?:spinal )?(?:fusion|rods?\b|fixation)|arthroplasty|prosthes[ie]s
surgical clips: (?:surgical |vascular |cholecystectomy |axillary |mediastinal )?(?:hemo)?clips?\b|sutures?\b|staples?\b
hiatal hernia: (?:hiatal|hiatus|paraesophageal)(?: \w+)? hernias?
elevated hemidiaphragm: (?:elevat|eventrat|rais)(?:ed|ion of)<4> (?:hemi-?)?diaphragm\w*|eventration
    |(?:hemi-?)?diaphragm\w*<3> (?:elevat|eventrat)\w+
scoliosis + kyphosis: kyphoscolio\w+
scoliosis: (?:dextro|levo|roto)?scolio\w+(?: curvature)?|(?:dextro|levo)(?:curv|convex|rotat)\w*|curvature
kyphosis: (?:hyper)?kypho(?:sis|tic)(?: curvature| curve)?\w*
pectus excavatum: pectus(?: excavatum)?(?: deformity)?(?! carin)|funnel chest
degenerative change: degenerat(?:ive|ed?|ion)|spondyl\w+|osteophyt\w*|spur(?:s|ring)\b|(?:osteo)?arthri\w+
    |arthro(?:sis|path\w+)|dis[ck] (?:space )?(?:narrowing|disease)|idiopathic skeletal hyperostosis
tortuous aorta + aortic calcification: aort(?:a|ic)<4> (?:tortu|ecta)\w*(?: and|,)<2> (?:calcif|atheroscl)\w*
    |aort(?:a|ic)<4> (?:calcif|atheroscl)\w*(?: and|,)<2> (?:tortu|ecta)\w*
tortuous aorta: (?:tortu|ecta[ts]|unfold|uncoil|dilat|elongat|aneurysm)\w*(?=(?: \w+){0,4}? aort(?:a|ic)\b)|tortuosity
    |(?:prominent|prominence|enlarged)<4> aort(?:a|ic)\b
    |aort(?:a|ic)(?:,?<1>){0,6}? (?:tortu|ecta|unfold|uncoil|dilat|elongat|prominent|aneurysm)\w*
aortic calcification: (?:athero|arterio)scl\w+|atheromatous|(?:calcif|sclero)\w+<5> (?:aort|arch)\w*|vascular calcif\w+
    |aort(?:a|ic)<5> (?:calcif|sclero)\w*
lymphadenopathy: (?:lymph)?adenopathy|enlarged (?:\w+ )?(?:lymph )?nodes?
hilar enlargement: (?:enlarge(?:d|ment of)|prominent|prominence of|full|fullness of)<2> (?:hil(?:um|a|ar)\b|perihilar)
    |hil(?:um|a|ar)(?: is| are| appears?| contours?| regions?){0,4}<1> (?:enlarge|prominen|fullness)\w*
osteopenia: osteopen\w+|osteopor\w+|demineraliz\w+
pneumoperitoneum: pneumoperitoneum|(?:air|gas) (?:under|beneath|below|underneath)<3> (?:hemi)?diaphragms?
    |free (?:\w+[ -]?)??(?:peritoneal |abdominal |diaphragmatic )?(?:air|gas)\b
_other: calcif\w+|deformit\w+|foreign bod\w+|lucenc\w+|thickening|densit(?:y|ies)\b|markings|peribronchial
    |pectus carinatum|bronchi(?:tis|olitis|al wall)|cuffing|aneurysm|dislocat\w+|mastectomy|implants?\b|resection
    |lobectomy|subluxation
    |pneumonectomy|thoracotomy|cystic|cysts?\b|sarcoid\w*|pulmonary hypertension|volume loss|leads?\b
    |sclero(?:sis|tic)|bullet|shrapnel|gunshot|surg(?:ery|ical)|post-?(?:operative|surgical|op\b)|separation|fat pad
    |crowding|artifact|obscured|piercings?|nipple ring|closure device
    |abnormal(?: (?:chest|radiograph|exam\w*|study|film)| *(?=[.,;]|$))|pneumomediastin\w+|empyemas?\b
    |(?:thrombo)?embol(?:ism|us|i|ic)\b|infarct\w*|ards\b|respiratory distress syndrome|perforat\w+|ruptur\w+
    |h[ae]?emorrhag\w+
    |aspirat(?:ion|ed)|situs inversus|agenesis|hypoplas\w+|hamartomas?\b|lymphomas?\b|mesotheliomas?\b|thymomas?\b
    |cancers?\b|sarcomas?\b|goit(?:er|re)s?\b|fistulas?\b|contusions?\b|lacerat\w+|plugging
    |(?:air|mucus|mucous) plugs?\b
    |bronchograms?\b|kerley|septal lines|coarctation|hernias?\b
    |(?:bowel|gastric|o?esophageal) (?:obstruction|dilat\w+)|ileus
    |achalasia|(?:hepat|splen|organ)\w*megaly|haz(?:e|iness)\b|ground[ -]glass|tree[ -]in[ -]bud|aspergill\w+|mycetoma
    |pneumocystis|covid\b
    |hyaline membrane|silicosis|asbestosis|pneumoconios[ei]s|alveolitis|malposition\w*|misplaced|shadowing|swelling
    |erosions?\b|eroded|destruct\w+|loss of volume|mediastinitis|chylothorax|pyothorax|effacement
    |pals(?:y|ies)\b|paralys[ie]s|tracheal shift|air[ -]fluid level
    |abscess(?:es)?\b|white-?out|dextrocardia|dissections?\b|deviat(?:ed|ion)
"""
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|evident|appreciated|demonstrated|visible|noted|detected|observed|found)"
)
# After these words an enumeration of what is absent has turned to what is present: "no effusion, stable cardiomegaly".
_TURN = (
    r"(?:an? |the )?(?:stable|unchanged|chronic|mild(?:ly)?|moderate(?:ly)?|persistent|again|old|remote|minimal(?:ly)?"
    r"|probabl[ey]|possibl[ey]|questionable|likely|healed|calcified|prior|previous|known|residual|status post"
    r"|borderline|suspected|increased|improv\w+|decreas\w+|worsening)\b"
)
# … or to a clause with a verb of its own ("no effusion and the heart is enlarged"), to something with a
# place or size (no "or" being ahead), or to a device.
_VERB = r"(?:is|are|was|were|has|have|remains?|appears?|persists?|continues?|shows?|demonstrates?|measures?)\b"
_CLAUSE = (
    r"(?:(?!(?:no|nor|or|not|without|evidence|and (?:the|an?|there))\b)[\w-]+ ){1,7}?"
    rf"{_VERB}(?! (?:now |again |clearly )?(?:not\b|{_SEEN}))"
)
_OWN_CLAUSE = rf"(?:{_CLAUSE}|(?:the|an?) (?:(?!(?:no|nor|or|not|without)\b)[\w-]+ ){{1,7}}?{_VERB})"
_NO_OR = r"(?![^.;:]{0,150}\b(?:or|nor)\b)"
_PLACED = (
    r"(?:an? )?(?:small|tiny|trace|left|right|bilateral|bibasilar|bibasal|biapical|streaky|patchy|linear|subtle|faint"
    r"|hazy|dense|multiple|few|scattered|diffuse|two|three|four|five|several|numerous|\d+(?:\.\d+)? ?[cm]m)\b"
)
# Of these some go on with an enumeration: "no infiltrate, large effusion, fracture", "…, and fracture".
_DEGREE = (
    r"(?:an? )?(?:mod|severe|extensive|marked|massive|low|very"
    r"|(?:large|huge|big|gross|new|acute)\b(?![^.;:]{0,150}, (?:and\b|[\w-]+(?: [\w-]+)? *(?:[.,;]|$))))\b" + _NO_OR
)
_DEVICE = (
    r"(?:(?!(?:or|nor|no)\b)[\w-]+ ){0,4}?"
    r"(?:tubes?|ett|ngt|catheter|picc|lines?|drains?|pacemaker|pacer|wires|leads?)\b"
)
# Something with a place behind it ("pneumonia in the right lower lobe"), or an organ that is not as it should be.
_THERE = (
    r"(?:(?!(?:no|nor|or|and|not|without)\b)[\w-]+ ){1,4}?"
    r"(?:in|at|of|within|along|over|near|on) the (?:right|left)\b"
)
_ORGAN = (
    r"(?:the )?(?:heart|cardiac|cardio\w+|mediastin\w+|hil(?:a|ar|um)|aort(?:a|ic)|lungs?|hemi-?diaphragms?)\b"
    r"(?: (?!(?:no|nor|or|not|without|and|normal)\b)[\w-]+){0,3}?"
    r" (?:enlarged|big|large|prominent|widened|dilated|tortuous|unfolded|elevated|raised|flattened|congested"
    r"|hyper-?(?:inflat|expan)\w*|over-?inflated)\b"
)
_OTHER_THING = rf"(?:(?:{_PLACED}|{_THERE}){_NO_OR}|{_ORGAN})"
# "No effusion seen, left nodule": the enumeration of what is absent ended with the verb.
_DONE = "(?:(?<=seen)|(?<=identified)|(?<=present)|(?<=noted))"
# event: cue, by precedence. `labeler` says what each event does.
POINTS = rf"""
HARD: [;!?]|\.(?=\s|$)
TURN: :|,(?= (?:{_TURN}|{_OWN_CLAUSE}|{_OTHER_THING}|{_DEVICE}{_NO_OR}))|{_DONE},(?! (?:no|or|and|nor)\b)
    |(?<=abnormality),(?! no\b)
FRESH: ,(?= {_DEGREE})
COMMA: ,
"""
CUES = rf"""
OR: (?:versus|vs\b\.?|and/or|or)(?= |/|$)
PSEUDO: (?:no|not|without|or)(?: (?:significantly|substantially|appreciably|much|significant|interval|substantial|acute
    |appreciable|definite|major|gross|obvious|notable|further|overall|real|apparent|evidence of|large|other)){{0,4}}
    [ ](?:changes?(?! (?:of|to suggest)\b)|increase|decrease|growth|progression|worsening|difference|improvement)\b
    |not(?: \w+){{0,2}}? (?:changed|increased|decreased|progressed|worsened|improved)\b
    |no doubt|not only|(?:partial|near|incomplete|almost)\w*(?: complete\w*)?(?: interval)? (?:resol|clear)\w+(?: of)?
KEEP: (?:(?:to|and) (?:document|ensure|confirm|assess|evaluate|demonstrate|verify)|until|for)(?: \w+){{0,2}}?
    [ ](?:resolution|clearing|clearance)(?: of)?\b|(?:compatible|consistent|associated|along|keeping) with\b
STICKY: differential\b
DOUBT: (?:can ?not|can't|not|unable to|difficult to|impossible to|hard to)(?: be)?(?: \w+){{0,2}}? (?:exclud(?:e|ing)
    |rule out)\b|(?:to exclude|rule out|r/o)\b
POST_DOUBT: (?:can ?not|can't|not)(?: be)?(?: \w+){{0,2}}? (?:excluded|ruled out)|less likely(?= *[.,;]|$)
    |(?:may|might|could) (?:also )?be present|suspected(?= *(?:[.,;]|$))
    |(?:is|are) (?:a|another) (?:possibility|concern|consideration)
    |(?:is|are|remains?|be|also)(?: \w+){{0,2}}? (?:possible|likely|suspected|probable|questioned|favou?red
    |considered|a consideration|difficult to exclude)\b
UNLIKELY: (?:un|not (?:very |at all )?)likely|improbable|doubtful
POST_NEG: (?:not|no longer|never)(?: (?!well|clearly|fully|only)\w+){{0,2}}? {_SEEN}\b
    |(?:has|have|had|is|are|now)(?: (?!not|no|partially|nearly)\w+){{0,2}}? (?:resolved|cleared|disappeared|absent
    |excluded|ruled out|removed)\b
POST_NORMAL: (?:(?:is|are|appears?|remains?) ){{0,2}}(?:within (?:the )?(?:normal )?limits|unremarkable|normal)\b
GONE: (?:resolved|cleared|removed|absent|excluded|ruled out|none)\b
NEG: (?:no|not|without|nil|nothing|negative for|(?:free|clear|devoid) (?:of|from)|(?:absence|lack|resolution|clearing
    |removal) of
    |den(?:ies|ied)|nor|neither|never|rather than|instead of)\b
ONE: (?:(?<=left )|(?<=right )|(?<=sided )|(?<=small )|(?<=tiny )|(?<=large ))one\b
IGNORE: (?:year[- ]old(?: \w+){{0,2}}? with
    |history of|h/o|hx of|if|indication|correlat\w+(?: \w+)? (?:as to|for|with)|evaluation (?:for|of)|to identify
    |(?:signs?|symptoms) of)\b
HARD: (?:but|however|although|though|except(?:ing)?|exception of|aside from|apart from|other than|besides|otherwise
    |whereas|while|yet)\b|\d\d?\)(?= )
CLAUSE: and (?={_OWN_CLAUSE})
SOFT: there (?:is|are|has|have|appears?|remains?|(?=may|might|could))\b
    |(?<!right )(?<!left )(?:and|with) (?={_TURN}|small\b|bilateral|{_OTHER_THING}|{_DEGREE})
    |with (?={_DEVICE}{_NO_OR})
    |(?:(?<=abnormality )|(?<=disease )|(?<=process ))with (?!no\b)|(?:is|are) (?:again )?{_SEEN}\b
UNSURE: (?:possibl[ey]|possibility|potential(?:ly)?|either|probabl[ey]|may|might|could|likely|suspected
    |suspicious for|suspicion|suspect
    |question(?:able|ed)?|equivocal|(?:likelihood|probability) of
    |concern(?:ing)?(?: for)?|worrisome for|suggest\w*|perhaps|presum\w+|consider\w*
    |favou?r\w*|borderline|evaluate for|exclude)\b
    |(?:appropriate|proper|right|correct) clinical (?:setting|context|scenario),?
WITH: with\b
BOTH: (?:bilateral(?:ly)?|both|each|bi-?(?:basilar|basal|apical)|(?:right|left) ?> ?(?:right|left)
    |(?:right|left) (?:greater|less|more|larger|worse)(?: \w+)? than (?:the )?(?:right|left))\b
RIGHT: (?:right(?! (?:heart|atri|ventric|lateral decub))(?: middle lobe)?|r[uml]l|middle lobe)\b
LEFT: (?:left(?! (?:heart|atri|ventric|lateral decub))(?: lingular?)?|l[ul]l|lingular?)\b
"""

# Statements of normality: something is fine, or nothing is wrong.
WELL = (
    r"(?<!not )(?<!no longer )\b"
    r"(?:normal(?! variant)|unremarkable|clear|nad|wnl|within (?:the )?(?:normal )?limits)\b"
    r"(?![^.;?!]{0,80}\?)"
    r"|\b(?:no|nil|without|negative for|nothing)(?: (?!change|interval|evidence of change)[\w-]+){0,6}?"
    r" (?:abnormal\w*|disease|process|patholog\w*|findings?|acute(?= *(?:[.,;]|$)))"
    r"|\babnormal(?:ity|ities| findings?) ?: ?(?:none|no|nil)\b|\b(?:nil|nothing) (?:acute|abnormal|focal|of note)\b"
    r"|\bnegative (?:\w+ )?(?:chest|study|exam\w*|radiographs?|film|x-?ray)|\b(?:chest|study|exam\w*|cxr) negative"
)

# With these a text that is otherwise well keeps something back. Where no finding was read there, it is unknown.
EXCEPTION = r"\b(?:except(?:ing)?|exception of|aside from|apart from|other than|besides)\b(?! th(?:is|at|[eo]se)\b)"


def rows(table: str) -> list[tuple[str, str]]:
    """The (name, pattern) rows of one of the tables above, continuation lines joined, "<n>" spelled out."""
    table = re.sub(r"\n +", "", table)
    table = re.sub(r"<(\d)>", r"(?: (?!(?:and|or|no|not|with|without|but)\\b)[\\w-]+){0,\1}?", table)
    return [(name, pattern) for name, _, pattern in (row.partition(": ") for row in table.strip().splitlines())]


NAMES = {f"F{i}": tuple(names.split(" + ")) for i, (names, _) in enumerate(rows(WORDS))}
FINDINGS: tuple[str, ...] = tuple(dict.fromkeys(n for names in NAMES.values() for n in names if n != "_other"))
"""The plain vocabulary: CheXpert's thirteen findings and the finer ones that reports name often."""
# fmt: off
SIDED: frozenset[str] = frozenset((
    "pneumothorax", "pleural effusion", "blunted costophrenic angle", "pleural other", "pneumonia", "consolidation",
    "atelectasis", "granuloma", "nodule", "lung lesion", "lung opacity", "bronchiectasis", "scar", "rib fracture",
    "elevated hemidiaphragm", "hilar enlargement",
))
PLACED: frozenset[str] = SIDED - {
    "pleural effusion", "blunted costophrenic angle", "rib fracture", "elevated hemidiaphragm", "hilar enlargement",
}
# fmt: on
"""`SIDED`: the plain names for which right and left are told apart; `PLACED`: those for which the height is, too."""
SIDED_FINDINGS: tuple[str, ...] = tuple(
    key for name in FINDINGS for key in ((name, f"right {name}", f"left {name}") if name in SIDED else (name,))
)
"""Every key `sided_label` may return; the plain name of a sided finding stands for "side not stated"."""
