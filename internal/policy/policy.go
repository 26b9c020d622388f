// Package policy turns the parameters of a volume policy, and what a Backup asks for, into
// Settings, or into an error that names the key, the value and the allowed values. Nothing is
// ignored or defaulted silently: a backup that does something else than its policy says is
// worse than one that fails.
//
// The way of a setting:
//
//	policy YAML ─ Parse ─▶ Settings ─ Resolve (Backup) ─▶ ToConfig ─▶ DataUpload.spec.dataMoverConfig ─ FromConfig ─▶ mover
//
// The package is pure.
package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blockmover/blockmover/internal/identity"
)

// BackupType is what is asked for: a full image, or an incremental one if possible.
type BackupType string

// The backup types. Parsing ignores case.
const (
	Full        BackupType = "Full"
	Incremental BackupType = "Incremental"
)

// Retention says how long the storage snapshot of a backup stays after the upload.
type Retention string

// The retentions. Parsing ignores case.
const (
	// RetentionAuto keeps the newest one of a volume, if the storage needs it to tell what
	// changed since.
	RetentionAuto Retention = "auto"
	// RetentionAlways keeps it until its backup is deleted.
	RetentionAlways Retention = "always"
	// RetentionNever keeps none.
	RetentionNever Retention = "never"
)

// Settings of one volume's backup.
type Settings struct {
	// BackupType is "" if the policy does not say.
	BackupType BackupType
	// FullEvery is the age at which a full image is due; 0 is never.
	FullEvery time.Duration
	// Audit is the share of the unchanged chunks that is read and compared.
	Audit Percent
	// SnapshotClass overrides the VolumeSnapshotClass or VolumeGroupSnapshotClass. "" is
	// Velero's choice.
	SnapshotClass string
	// Retention is "" if nobody says. The mover then uses RetentionAuto.
	Retention Retention
	// KubeVirt asks KubeVirt to back up a disk of a VM. SkipQuiesce keeps it from freezing the
	// guest.
	KubeVirt, SkipQuiesce bool
	// VMReason is why the storage takes a snapshot although KubeVirt is set. A policy cannot set
	// it.
	VMReason string
	// GroupRequired makes it an error if a volume with the label of a group is not
	// snapshotted as a member of one.
	GroupRequired bool
	// Parent is the ID of the repo snapshot that an incremental image has to build on. With
	// "" the mover chooses. A policy cannot name one; only the author of a DataUpload can.
	Parent string
}

// Keys of the policy's parameters.
const (
	keyMover         = "mover"
	keyDataMover     = "dataMover" // alias of mover
	keyBackupType    = "backupType"
	keyFullEvery     = "fullEvery"
	keyAudit         = "audit"
	keyRetention     = "retainSnapshot"
	keySnapshotClass = "snapshotClass"
	keyGroup         = "group"
	keySkipQuiesce   = "skipQuiesce"
)

// Values of keyGroup.
const (
	groupRequired  = "required"
	groupPreferred = "preferred"
)

// Parse checks the parameters of a policy that IsOurs. YAML gives strings, numbers and
// booleans. All our values are strings, except an audit of 0 and skipQuiesce.
func Parse(params map[string]any) (Settings, error) {
	s := Settings{Audit: DefaultAudit}
	// In order of the keys: of two mistakes, always the same is reported.
	for _, key := range slices.Sorted(maps.Keys(params)) {
		if err := s.set(key, params[key]); err != nil {
			return Settings{}, fmt.Errorf("parse volume policy parameters: %w", err)
		}
	}
	mover, isMover := params[keyMover]
	if alias, isAlias := params[keyDataMover]; isMover && isAlias && mover != alias {
		return Settings{}, fmt.Errorf("parse volume policy parameters: %s is %v and %s is %v: want the same, or one of them", keyMover, mover, keyDataMover, alias)
	}
	if s.SkipQuiesce && !s.KubeVirt {
		return Settings{}, fmt.Errorf("parse volume policy parameters: %s is for %s: %s", keySkipQuiesce, keyMover, identity.MoverKubeVirt)
	}
	return s, nil
}

func (s *Settings) set(key string, value any) error {
	text, isString := value.(string)
	switch key {
	case keyMover, keyDataMover:
		kubeVirt, err := parseMover(text)
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.KubeVirt = kubeVirt
	case keyBackupType:
		t, err := parseType(text)
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.BackupType = t
	case keyFullEvery:
		d, err := parseFullEvery(text)
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.FullEvery = d
	case keyAudit:
		p, err := ParsePercent(fmt.Sprint(value))
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.Audit = p
	case keyRetention:
		r, err := parseRetention(text)
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.Retention = r
	case keySnapshotClass:
		if !isString {
			return fmt.Errorf("%s: %v: want the name of a VolumeSnapshotClass, in quotes", key, value)
		}
		s.SnapshotClass = text
	case keyGroup:
		required, err := parseGroup(text)
		if err != nil {
			return fmt.Errorf("%s: %v: %w", key, value, err)
		}
		s.GroupRequired = required
	case keySkipQuiesce:
		return s.setQuiesce(value)
	default:
		return fmt.Errorf("%s: %v: unknown key, want one of %s", key, value,
			strings.Join([]string{keyMover, keyBackupType, keyFullEvery, keyAudit, keyRetention, keySnapshotClass, keyGroup, keySkipQuiesce}, ", "))
	}
	return nil
}

// Resolve chooses between full and incremental. The first of these that is set decides:
// Backup.spec.backupType, the annotation of the Backup, the policy. The default is
// Incremental. A value that is not valid is an error, even if it would not decide.
func Resolve(backupSpecType, annotation string, s Settings) (BackupType, error) {
	sources := []struct{ name, value string }{
		{"Backup.spec.backupType", backupSpecType},
		{"annotation " + identity.AnnotationBackupType + " of the Backup", annotation},
		{"volume policy parameter " + keyBackupType, string(s.BackupType)},
	}
	var chosen BackupType
	for _, source := range sources {
		if source.value == "" {
			continue
		}
		t, err := parseType(source.value)
		if err != nil {
			return "", fmt.Errorf("resolve backup type: %s: %q: %w", source.name, source.value, err)
		}
		if chosen == "" {
			chosen = t
		}
	}
	if chosen == "" {
		chosen = Incremental
	}
	return chosen, nil
}

// ResolveRetention chooses the retention: that of the annotation of the Backup, else that of
// the policy, else "".
func ResolveRetention(annotation string, s Settings) (Retention, error) {
	if annotation == "" {
		return s.Retention, nil
	}
	r, err := parseRetention(annotation)
	if err != nil {
		return "", fmt.Errorf("resolve retention: annotation %s of the Backup: %q: %w", identity.AnnotationRetainSnapshot, annotation, err)
	}
	return r, nil
}

// ParentSnapshot returns the choice of parent as a DataUpload and a task spell it: "auto",
// "none", or a repo snapshot ID.
func (s Settings) ParentSnapshot() string {
	switch {
	case s.BackupType == Full:
		return identity.ParentNone
	case s.Parent != "":
		return s.Parent
	default:
		return identity.ParentAuto
	}
}

// ToConfig renders what the mover needs as DataUpload.spec.dataMoverConfig. It leaves out the
// snapshot class, which has its own field in the DataUpload, and settings that end with the
// snapshot.
func (s Settings) ToConfig() map[string]string {
	config := map[string]string{identity.ConfigParentSnapshot: s.ParentSnapshot()}
	if s.FullEvery > 0 {
		config[identity.ConfigFullEvery] = s.FullEvery.String()
	}
	if s.Audit != DefaultAudit {
		config[identity.ConfigAudit] = s.Audit.String()
	}
	if s.Retention != "" {
		config[identity.ConfigRetainSnapshot] = string(s.Retention)
	}
	if s.SkipQuiesce {
		config[identity.ConfigSkipQuiesce] = "true"
	}
	if s.VMReason != "" {
		config[identity.ConfigVMReason] = s.VMReason
	}
	return config
}

// FromConfig reads DataUpload.spec.dataMoverConfig. It checks our keys and ignores others,
// such as Velero's ParallelFilesUpload. A DataUpload of Velero's built-in action has no key
// of ours: it is incremental, with the default audit.
func FromConfig(config map[string]string) (Settings, error) {
	s := Settings{BackupType: Incremental, Audit: DefaultAudit}
	parent, set := config[identity.ConfigParentSnapshot]
	if set && parent == "" {
		return Settings{}, fmt.Errorf("parse data mover config: %s: %q: want %q, %q or a repo snapshot ID",
			identity.ConfigParentSnapshot, parent, identity.ParentAuto, identity.ParentNone)
	}
	s.setParent(parent)
	if text, set := config[identity.ConfigFullEvery]; set {
		d, err := parseFullEvery(text)
		if err != nil {
			return Settings{}, fmt.Errorf("parse data mover config: %s: %q: %w", identity.ConfigFullEvery, text, err)
		}
		s.FullEvery = d
	}
	if text, set := config[identity.ConfigAudit]; set {
		p, err := ParsePercent(text)
		if err != nil {
			return Settings{}, fmt.Errorf("parse data mover config: %s: %q: %w", identity.ConfigAudit, text, err)
		}
		s.Audit = p
	}
	if text, set := config[identity.ConfigRetainSnapshot]; set {
		r, err := parseRetention(text)
		if err != nil {
			return Settings{}, fmt.Errorf("parse data mover config: %s: %q: %w", identity.ConfigRetainSnapshot, text, err)
		}
		s.Retention = r
	}
	if text, set := config[identity.ConfigSkipQuiesce]; set {
		b, err := strconv.ParseBool(text)
		if err != nil {
			return Settings{}, fmt.Errorf("parse data mover config: %s: %q: want true or false", identity.ConfigSkipQuiesce, text)
		}
		s.SkipQuiesce = b
	}
	return s, nil
}

// setParent is the inverse of ParentSnapshot. "" means the same as "auto".
func (s *Settings) setParent(parent string) {
	switch parent {
	case identity.ParentNone:
		s.BackupType = Full
	case "", identity.ParentAuto:
	default:
		s.Parent = parent
	}
}

// FromDataUpload is FromConfig for a DataUpload whose CRD may have spec.parentSnapshot, where
// Velero puts "none" for a full image. It reports whether the DataUpload decides between full
// and incremental. If not, the caller asks the Backup.
func FromDataUpload(config map[string]string, parentSnapshot string) (s Settings, decided bool, err error) {
	if s, err = FromConfig(config); err != nil {
		return Settings{}, false, err
	}
	ours, set := config[identity.ConfigParentSnapshot]
	switch {
	case set && parentSnapshot != "" && parentSnapshot != ours:
		return Settings{}, false, fmt.Errorf("parse DataUpload: spec.parentSnapshot is %q and spec.dataMoverConfig has %s: %q: want the same, or one of them",
			parentSnapshot, identity.ConfigParentSnapshot, ours)
	case set:
		return s, true, nil
	}
	s.setParent(parentSnapshot)
	return s, s.BackupType == Full || s.Parent != "", nil
}

func parseRetention(text string) (Retention, error) {
	for _, r := range []Retention{RetentionAuto, RetentionAlways, RetentionNever} {
		if strings.EqualFold(text, string(r)) {
			return r, nil
		}
	}
	return "", fmt.Errorf("want %s, %s or %s", RetentionAuto, RetentionAlways, RetentionNever)
}

func (s *Settings) setQuiesce(value any) error {
	b, err := strconv.ParseBool(fmt.Sprint(value))
	if err != nil {
		return fmt.Errorf("%s: %v: want true or false", keySkipQuiesce, value)
	}
	s.SkipQuiesce = b
	return nil
}

// parseMover reports whether the mover is KubeVirt.
func parseMover(text string) (bool, error) {
	if !slices.Contains(movers, text) {
		return false, fmt.Errorf("want %s (%s is an alias of %s; where both are set they must agree)",
			strings.Join(movers, " or "), keyDataMover, keyMover)
	}
	return text == identity.MoverKubeVirt, nil
}

// parseGroup reports whether a group is required.
func parseGroup(text string) (bool, error) {
	required := strings.EqualFold(text, groupRequired)
	if !required && !strings.EqualFold(text, groupPreferred) {
		return false, fmt.Errorf("want %s or %s", groupRequired, groupPreferred)
	}
	return required, nil
}

func parseType(text string) (BackupType, error) {
	for _, t := range []BackupType{Full, Incremental} {
		if strings.EqualFold(text, string(t)) {
			return t, nil
		}
	}
	return "", fmt.Errorf("want %s or %s", strings.ToLower(string(Full)), strings.ToLower(string(Incremental)))
}

func parseFullEvery(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, errors.New("want a duration above 0 such as 168h")
	}
	return d, nil
}
