package policy

import (
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/identity"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		params map[string]any
		want   Settings
	}{
		"mover only":     {map[string]any{"mover": "blockmover"}, Settings{Audit: 1}},
		"alias only":     {map[string]any{"dataMover": "blockmover"}, Settings{Audit: 1}},
		"both and equal": {map[string]any{"mover": "blockmover", "dataMover": "blockmover"}, Settings{Audit: 1}},
		"everything": {
			map[string]any{"mover": "blockmover", "backupType": "full", "fullEvery": "168h", "audit": "2.5%", "retainSnapshot": "never", "snapshotClass": "fast"},
			Settings{Audit: 2.5, BackupType: Full, FullEvery: 168 * time.Hour, Retention: RetentionNever, SnapshotClass: "fast"},
		},
		"any case":               {map[string]any{"mover": "blockmover", "backupType": "INCREMENTAL"}, Settings{Audit: 1, BackupType: Incremental}},
		"empty snapshot class":   {map[string]any{"mover": "blockmover", "snapshotClass": ""}, Settings{Audit: 1}},
		"no audit":               {map[string]any{"mover": "blockmover", "audit": "0"}, Settings{}},
		"no audit, as a number":  {map[string]any{"mover": "blockmover", "audit": 0}, Settings{}},
		"duration with fraction": {map[string]any{"mover": "blockmover", "fullEvery": "1.5h"}, Settings{Audit: 1, FullEvery: 90 * time.Minute}},
		"group":                  {map[string]any{"mover": "blockmover", "group": "Required"}, Settings{Audit: 1, GroupRequired: true}},
		"KubeVirt":               {map[string]any{"mover": "blockmover-kubevirt"}, Settings{Audit: 1, KubeVirt: true}},
		"KubeVirt, not quiesced": {map[string]any{"dataMover": "blockmover-kubevirt", "skipQuiesce": "true"}, Settings{Audit: 1, KubeVirt: true, SkipQuiesce: true}},
		"group, if possible":     {map[string]any{"mover": "blockmover", "group": "preferred"}, Settings{Audit: 1}},
		"retain in any case":     {map[string]any{"mover": "blockmover", "retainSnapshot": "Always"}, Settings{Audit: 1, Retention: RetentionAlways}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			require.True(t, IsOurs(test.params))
			got, err := Parse(test.params)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

// Every error names the key, the value, and what is allowed.
func TestParseErrors(t *testing.T) {
	tests := map[string]struct {
		key   string
		value any
		want  []string
	}{
		"unknown key":              {"backuptype", "full", []string{"backuptype", "full", "unknown key", "mover, backupType, fullEvery, audit, retainSnapshot, snapshotClass, group"}},
		"mover of somebody else":   {"mover", "other", []string{"mover", "other", "want blockmover or blockmover-kubevirt"}},
		"alias disagrees":          {"dataMover", "velero", []string{"dataMover", "velero", "want blockmover or blockmover-kubevirt"}},
		"alias is another of ours": {"dataMover", "blockmover-kubevirt", []string{"mover is blockmover and dataMover is blockmover-kubevirt: want the same"}},
		"quiesce without a VM":     {"skipQuiesce", true, []string{"skipQuiesce is for mover: blockmover-kubevirt"}},
		"quiesce is a word":        {"skipQuiesce", "perhaps", []string{"skipQuiesce: perhaps: want true or false"}},
		"mover is a number":        {"dataMover", 7, []string{"dataMover", "7"}},
		"unknown backup type":      {"backupType", "differential", []string{"backupType", "differential", "full or incremental"}},
		"backup type is a boolean": {"backupType", true, []string{"backupType", "true", "full or incremental"}},
		"empty backup type":        {"backupType", "", []string{"backupType", "full or incremental"}},
		"fullEvery is a number":    {"fullEvery", 168, []string{"fullEvery", "168", "168h"}},
		"fullEvery without unit":   {"fullEvery", "168", []string{"fullEvery", "168", "168h"}},
		"fullEvery in days":        {"fullEvery", "7d", []string{"fullEvery", "7d", "168h"}},
		"fullEvery zero":           {"fullEvery", "0s", []string{"fullEvery", "0s", "above 0"}},
		"fullEvery negative":       {"fullEvery", "-1h", []string{"fullEvery", "-1h", "above 0"}},
		"snapshot class is null":   {"snapshotClass", nil, []string{"snapshotClass", "VolumeSnapshotClass"}},
		"audit without unit":       {"audit", 1, []string{"audit: 1", "a percentage from 0% to 100% such as 1%"}},
		"audit of more than all":   {"audit", "101%", []string{"audit: 101%", "a percentage"}},
		"audit is null":            {"audit", nil, []string{"audit", "a percentage"}},
		"unknown way to retain":    {"retainSnapshot", "newest", []string{"retainSnapshot", "newest", "auto, always or never"}},
		"unknown group":            {"group", "always", []string{"group", "always", "required or preferred"}},
		"retain is a boolean":      {"retainSnapshot", false, []string{"retainSnapshot", "false", "auto, always or never"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			params := map[string]any{"mover": "blockmover"}
			params[test.key] = test.value
			_, err := Parse(params)
			require.Error(t, err)
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestCheckForeign(t *testing.T) {
	for name, c := range map[string]struct {
		params map[string]any
		want   string
	}{
		"another plugin":        {map[string]any{"mover": "other", "speed": 7}, ""},
		"none":                  {nil, ""},
		"a longer name":         {map[string]any{"mover": "blockmover-next"}, ""},
		"a letter too many":     {map[string]any{"mover": "blockmoover"}, "mover: blockmoover: want blockmover, or a name that is less like it"},
		"a letter too few":      {map[string]any{"dataMover": "blokmover"}, "dataMover: blokmover: want blockmover"},
		"two letters exchanged": {map[string]any{"mover": "bolckmover"}, "mover: bolckmover: want blockmover"},
		"capitals":              {map[string]any{"mover": "BlockMover"}, "mover: BlockMover: want blockmover"},
		"of VMs":                {map[string]any{"mover": "blockmover-kubvirt"}, "mover: blockmover-kubvirt: want blockmover-kubevirt"},
		"the key":               {map[string]any{"movr": "blockmover"}, "movr: unknown key, want mover: blockmover"},
		"the key, in capitals":  {map[string]any{"Mover": "blockmover"}, "Mover: unknown key, want mover: blockmover"},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckForeign(c.params)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "parse volume policy parameters: "+c.want)
		})
	}
}

func TestIsOurs(t *testing.T) {
	tests := map[string]struct {
		params map[string]any
		want   bool
	}{
		"nobody":            {nil, false},
		"somebody else":     {map[string]any{"mover": "other"}, false},
		"not a string":      {map[string]any{"mover": true}, false},
		"us":                {map[string]any{"mover": "blockmover"}, true},
		"us by alias":       {map[string]any{"dataMover": "blockmover"}, true},
		"us and a stranger": {map[string]any{"mover": "other", "dataMover": "blockmover"}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, IsOurs(test.params)) })
	}
}

func TestMatchParametersAreOurs(t *testing.T) {
	for _, params := range MatchParameters() {
		require.True(t, IsOurs(params), params)
		_, err := Parse(params)
		require.NoError(t, err)
	}
}

func TestResolve(t *testing.T) {
	tests := map[string]struct {
		spec, annotation string
		policy           BackupType
		want             BackupType
		wantErr          string
	}{
		"nothing said":               {want: Incremental},
		"policy":                     {policy: Full, want: Full},
		"annotation before policy":   {annotation: "incremental", policy: Full, want: Incremental},
		"spec before annotation":     {spec: "Full", annotation: "Incremental", policy: Incremental, want: Full},
		"any case":                   {spec: "fULL", want: Full},
		"unknown in spec":            {spec: "Differential", wantErr: `Backup.spec.backupType: "Differential": want full or incremental`},
		"unknown in annotation":      {annotation: "weekly", wantErr: `blockmover.io/backup-type`},
		"unknown where not decisive": {spec: "Full", annotation: "weekly", wantErr: `"weekly"`},
		"blanks are not trimmed":     {spec: " full", wantErr: `" full"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Resolve(test.spec, test.annotation, Settings{BackupType: test.policy})
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestResolveRetention(t *testing.T) {
	tests := map[string]struct {
		annotation string
		policy     Retention
		want       Retention
		wantErr    string
	}{
		"nothing said":             {},
		"policy":                   {policy: RetentionNever, want: RetentionNever},
		"annotation before policy": {annotation: "ALWAYS", policy: RetentionNever, want: RetentionAlways},
		"unknown in annotation":    {annotation: "yes", policy: RetentionNever, wantErr: `blockmover.io/retain-snapshot of the Backup: "yes": want auto, always or never`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ResolveRetention(test.annotation, Settings{Retention: test.policy})
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestConfigRoundTrip(t *testing.T) {
	tests := map[string]struct {
		settings Settings
		config   map[string]string
	}{
		"incremental": {Settings{BackupType: Incremental, Audit: 1}, map[string]string{"parentSnapshot": "auto"}},
		"full":        {Settings{BackupType: Full, Audit: 100}, map[string]string{"parentSnapshot": "none", "audit": "100%"}},
		"a parent":    {Settings{BackupType: Incremental, Parent: "k1234"}, map[string]string{"parentSnapshot": "k1234", "audit": "0%"}},
		"fullEvery": {
			Settings{BackupType: Incremental, FullEvery: 36 * time.Hour},
			map[string]string{"parentSnapshot": "auto", "fullEvery": "36h0m0s", "audit": "0%"},
		},
		"retain": {
			Settings{BackupType: Incremental, Retention: RetentionAlways},
			map[string]string{"parentSnapshot": "auto", "retainSnapshot": "always", "audit": "0%"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.config, test.settings.ToConfig())
			got, err := FromConfig(test.config)
			require.NoError(t, err)
			require.Equal(t, test.settings, got)
			require.Equal(t, test.config["parentSnapshot"], got.ParentSnapshot())
		})
	}
}

func TestFromConfigOfVelero(t *testing.T) {
	for name, config := range map[string]map[string]string{
		"none":           nil,
		"keys of Velero": {"WriteSparseFiles": "false", "ParallelFilesUpload": "10"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromConfig(config)
			require.NoError(t, err)
			require.Equal(t, Settings{BackupType: Incremental, Audit: 1}, got)
			require.Equal(t, "auto", got.ParentSnapshot())
		})
	}
}

func TestFromConfigErrors(t *testing.T) {
	for name, test := range map[string]struct {
		config map[string]string
		want   string
	}{
		"empty parent":        {map[string]string{"parentSnapshot": ""}, `parentSnapshot: ""`},
		"malformed fullEvery": {map[string]string{"fullEvery": "weekly"}, `fullEvery: "weekly"`},
		"malformed audit":     {map[string]string{"audit": "1"}, `audit: "1"`},
		"zero fullEvery":      {map[string]string{"fullEvery": "0"}, `fullEvery: "0"`},
		"unknown retain":      {map[string]string{"retainSnapshot": "1"}, `retainSnapshot: "1"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := FromConfig(test.config)
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestFromDataUpload(t *testing.T) {
	ours := func(parent string) map[string]string { return map[string]string{"parentSnapshot": parent} }
	for name, test := range map[string]struct {
		config  map[string]string
		field   string
		want    string
		decided bool
		wantErr string
	}{
		"nothing said":               {want: "auto"},
		"Velero wants it full":       {field: "none", want: "none", decided: true},
		"Velero leaves it to us":     {field: "auto", want: "auto"},
		"Velero names a parent":      {field: "k1", want: "k1", decided: true},
		"ours, the CRD has no field": {config: ours("none"), want: "none", decided: true},
		"ours":                       {config: ours("auto"), field: "auto", want: "auto", decided: true},
		"they differ":                {config: ours("auto"), field: "none", wantErr: `spec.parentSnapshot is "none" and spec.dataMoverConfig has parentSnapshot: "auto"`},
		"malformed":                  {config: ours(""), field: "none", wantErr: `parentSnapshot: ""`},
	} {
		t.Run(name, func(t *testing.T) {
			got, decided, err := FromDataUpload(test.config, test.field)
			if test.wantErr != "" {
				require.ErrorContains(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got.ParentSnapshot())
			require.Equal(t, test.decided, decided)
		})
	}
}

// FuzzParse: every policy is either an error that names its key, or reaches the mover
// unchanged.
func FuzzParse(f *testing.F) {
	f.Add("backupType", "full", "fullEvery", "168h")
	f.Add("snapshotClass", "", "dataMover", "blockmover")
	f.Add("audit", "1%", "mover", "velero")
	f.Add("retainSnapshot", "Never", "backupType", "full")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		params := map[string]any{"mover": "blockmover"}
		params[key1] = value1
		params[key2] = value2
		s, err := Parse(params)
		if err != nil {
			if !strings.Contains(err.Error(), key1) && !strings.Contains(err.Error(), key2) {
				t.Fatalf("Parse(%v): error names neither key: %v", params, err)
			}
			return
		}
		s.BackupType, err = Resolve("", "", s)
		if err != nil {
			t.Fatalf("Resolve after Parse(%v): %v", params, err)
		}
		back, err := FromConfig(s.ToConfig())
		if err != nil {
			t.Fatalf("FromConfig(ToConfig()) after Parse(%v): %v", params, err)
		}
		s.SnapshotClass = "" // it has its own field in the DataUpload
		if back != s {
			t.Fatalf("Parse(%v): %+v became %+v on the way to the mover", params, s, back)
		}
	})
}

// FuzzFromDataUpload: what a DataUpload says is an error that names the key, or settings that are written as they are read.
func FuzzFromDataUpload(f *testing.F) {
	f.Add("auto", "168h", "1%", "never", "true", "none")
	f.Add("none", "1h", "0", "Always", "F", "none")
	f.Add("k1", "0", "NaN%", "", "maybe", "")
	f.Fuzz(func(t *testing.T, parent, fullEvery, audit, retain, quiesce, field string) {
		config := map[string]string{
			identity.ConfigParentSnapshot: parent, identity.ConfigFullEvery: fullEvery, identity.ConfigAudit: audit,
			identity.ConfigRetainSnapshot: retain, identity.ConfigSkipQuiesce: quiesce,
		}
		maps.DeleteFunc(config, func(_, value string) bool { return value == "-" })
		s, decided, err := FromDataUpload(config, field)
		if err != nil {
			if s != (Settings{}) || decided {
				t.Fatalf("%v, %q: %+v with an error: %v", config, field, s, err)
			}
			return
		}
		if s.FullEvery < 0 || s.Audit < 0 || s.Audit > 100 || s.ParentSnapshot() == "" {
			t.Fatalf("%v, %q: %+v", config, field, s)
		}
		back, err := FromConfig(s.ToConfig())
		if err != nil || back != s {
			t.Fatalf("%v, %q: %+v became %+v: %v", config, field, s, back, err)
		}
	})
}

// The reference has a row for each key, and no others. dataMover is the alias of mover.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/policy.md")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "\n## Parameters\n")
	require.True(t, found)
	table, _, _ := strings.Cut(after, "\n## ")
	var rows []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		rows = append(rows, row[1])
	}
	_, err = Parse(map[string]any{"mover": "blockmover", "unknown": ""})
	require.Error(t, err)
	_, keys, found := strings.Cut(err.Error(), "want one of ")
	require.True(t, found)
	require.ElementsMatch(t, strings.Split(keys, ", "), rows)
}
