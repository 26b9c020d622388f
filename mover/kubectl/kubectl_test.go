package kubectl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/identity"
)

// call is one call of the plugin on objects of a cluster.
type call struct {
	*session
	out, errOut bytes.Buffer
}

func newCall(t *testing.T, objects ...client.Object) *call {
	t.Helper()
	scheme, err := newScheme()
	require.NoError(t, err)
	c := &call{}
	c.session = &session{
		config:  genericclioptions.NewConfigFlags(true),
		Streams: genericiooptions.IOStreams{Out: &c.out, ErrOut: &c.errOut},
		Client:  fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build(),
	}
	return c
}

var noon = metav1.NewTime(time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC))

// upload is a DataUpload of the volume shop/data.
func upload(name, backup string, phase velerov2alpha1.DataUploadPhase, age time.Duration) *velerov2alpha1.DataUpload {
	created := metav1.NewTime(noon.Add(-age))
	du := &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "velero", Name: name, UID: "uid", CreationTimestamp: created, Labels: map[string]string{velerov1.BackupNameLabel: backup},
		},
		Spec: velerov2alpha1.DataUploadSpec{
			DataMover: identity.DataMover, SourceNamespace: "shop", SourcePVC: "data", BackupStorageLocation: "default",
		},
		Status: velerov2alpha1.DataUploadStatus{Phase: phase},
	}
	du.Status.Progress.TotalBytes = 1000 << 20
	return du
}

func TestStatus(t *testing.T) {
	running := upload("u1", "daily-1", velerov2alpha1.DataUploadPhaseInProgress, time.Hour)
	started := metav1.NewTime(time.Now().Add(-10 * time.Second))
	running.Status.StartTimestamp = &started
	running.Status.Progress.BytesDone = 250 << 20
	running.Status.Node = "node-1"
	waiting := upload("u2", "daily-2", velerov2alpha1.DataUploadPhaseNew, time.Minute)
	waiting.Status.Message = "waits for a slot"
	done := upload("u0", "daily-0", velerov2alpha1.DataUploadPhaseCompleted, 25*time.Hour)
	foreign := upload("u3", "daily-2", velerov2alpha1.DataUploadPhaseInProgress, time.Minute)
	foreign.Spec.DataMover = "velero"
	down := &velerov2alpha1.DataDownload{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "d1", CreationTimestamp: noon, Labels: map[string]string{velerov1.RestoreNameLabel: "back"}},
		Spec:       velerov2alpha1.DataDownloadSpec{DataMover: identity.DataMover, TargetVolume: velerov2alpha1.TargetVolumeSpec{Namespace: "copy", PVC: "data"}},
	}
	c := newCall(t, running, waiting, done, foreign, down)
	v := &viewer{session: c.session, format: "table"}
	require.NoError(t, v.show(t.Context()))
	text := c.out.String()
	require.Contains(t, text, "shop/data")
	require.Regexp(t, `shop/data +Upload +daily-1 +InProgress +25% +1000MiB +2\dMiB/s +\d+s +node-1 +1 `, text)
	require.Regexp(t, `shop/data +Upload +daily-2 +New .* waits for a slot`, text)
	require.Regexp(t, `copy/data +Download +back +New `, text)
	require.NotContains(t, text, "daily-0", "it has ended")
	require.NotContains(t, text, "u3", "another data mover")

	for filter, want := range map[string][]string{"daily-0": {"u0"}, "shop/data": {"u0", "u1", "u2"}, "back": {"d1"}, "d1": {"d1"}} {
		v := &viewer{session: c.session, filter: filter, all: true}
		found, err := v.look(t.Context())
		require.NoError(t, err)
		names := make([]string, 0, len(found))
		for _, o := range found {
			names = append(names, o.Name)
		}
		require.Equal(t, want, names, filter)
	}

	c.out.Reset()
	for want, v := range map[string]viewer{
		"Nothing runs or waits in namespace velero. --all shows":                    {},
		"Namespace velero has no upload or download.\n":                             {all: true},
		"Namespace velero has no upload or download of daily-9. Without a name, --": {all: true, filter: "daily-9"},
	} {
		none := newCall(t)
		v.session, v.format = none.session, "table"
		require.NoError(t, v.show(t.Context()), "nothing is no error")
		require.Contains(t, none.errOut.String(), want)
	}
}

// A line leaves out what is not known.
func TestLine(t *testing.T) {
	o := Operation{Kind: identity.KindDataUpload, Volume: "shop/data", Of: "daily", Phase: "Accepted"}
	require.Equal(t, "Upload of shop/data for daily: Accepted", o.line())
	o.Message = "waits"
	require.Equal(t, "Upload of shop/data for daily: Accepted: waits", o.line())
	o.BytesTotal = 1 << 20
	require.Equal(t, "Upload of shop/data for daily: Accepted, 0B of 1.0MiB: waits", o.line())
}

// A command without its arguments says which they are.
func TestUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"usage: kubectl blockmover chain NAMESPACE/PVC [flags]":                           {"chain"},
		"usage: kubectl blockmover cancel NAME|BACKUP|RESTORE|NAMESPACE/PVC [flags]":      {"cancel"},
		"usage: kubectl blockmover status [BACKUP|RESTORE|NAMESPACE/PVC] [flags]":         {"status", "a", "b"},
		"usage: kubectl blockmover verify [BACKUP|NAMESPACE/PVC] | --all [flags]":         {"verify", "a", "b"},
		"usage: kubectl blockmover plugin add IMAGE [flags]":                              {"plugin", "add"},
		"name a backup or NAMESPACE/PVC, or give --all, and not both":                     {"verify"},
		"usage: kubectl blockmover files cp BACKUP NAMESPACE/PVC PATH… DIRECTORY [flags]": {"files", "cp", "b", "shop/data", "/a"},
	} {
		cmd := NewCommand()
		cmd.SetArgs(append(args, "--server", "http://127.0.0.1:1"))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		require.EqualError(t, cmd.ExecuteContext(t.Context()), want)
	}
}

func TestRate(t *testing.T) {
	for name, tc := range map[string]struct {
		done, all int64
		in        time.Duration
		rate      int64
		left      int64
	}{
		"half":          {500, 1000, 5 * time.Second, 100, 11},
		"nothing yet":   {0, 1000, time.Second, 0, 0},
		"no time":       {500, 1000, 0, 0, 0},
		"went back":     {-5, 1000, time.Second, 0, 0},
		"size unknown":  {500, 0, time.Second, 500, 0},
		"below 1 B a s": {1, 1000, time.Hour, 0, 0},
	} {
		o := Operation{BytesDone: tc.done, BytesTotal: tc.all}
		if tc.all == 1000 && tc.done == 500 {
			o.BytesDone = 0 // what was done before does not count
		}
		o.setRate(tc.done, tc.in)
		require.Equal(t, tc.rate, o.BytesPerSecond, name)
		require.Equal(t, tc.left, o.SecondsLeft, name)
	}
}

// A pipe gets a line for each change, and none without.
func TestFollowLines(t *testing.T) {
	du := upload("u1", "daily-1", velerov2alpha1.DataUploadPhaseInProgress, time.Hour)
	c := newCall(t, du)
	v := &viewer{session: c.session, format: "table"}
	said := map[string]string{}
	for range 3 {
		found, err := v.look(t.Context())
		require.NoError(t, err)
		require.NoError(t, v.lines(found, said))
	}
	require.Equal(t, 1, bytes.Count(c.out.Bytes(), []byte("\n")))
	require.Contains(t, c.out.String(), "Upload of shop/data for daily-1: InProgress, 0B of 1000MiB")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.NoError(t, v.follow(ctx, time.Millisecond), "the end of the context is how it ends")
	require.ErrorContains(t, v.follow(t.Context(), 0), "want more than 0")
}

func TestChain(t *testing.T) {
	full := upload("u1", "daily-1", velerov2alpha1.DataUploadPhaseCompleted, 48*time.Hour)
	full.Status.SnapshotID = "repo-1"
	full.Status.DataMoverResult = &map[string]string{
		"kind": "Full", "reasons": "DeltaFailed,NoParent", "detail": "the storage says no", "bytesRead": "1048576", "bytesUploaded": "524288", "volumeSize": "2097152",
	}
	next := upload("u2", "daily-2", velerov2alpha1.DataUploadPhaseCompleted, 24*time.Hour)
	next.Status.SnapshotID = "repo-2"
	next.Status.DataMoverResult = &map[string]string{"kind": "Incremental", "parent": "repo-1"}
	next.Annotations = map[string]string{identity.AnnotationRetained: `{"snapshotHandle":"snap-2"}`}
	gone := upload("u3", "daily-3", velerov2alpha1.DataUploadPhaseCompleted, time.Hour)
	gone.Status.DataMoverResult = &map[string]string{"kind": "Incremental", "parent": "repo-of-another-cluster"}
	failed := upload("u4", "daily-4", velerov2alpha1.DataUploadPhaseFailed, time.Minute)
	failed.Status.Message = "no space"
	other := upload("u5", "daily-4", velerov2alpha1.DataUploadPhaseCompleted, time.Minute)
	other.Spec.SourcePVC = "other"
	c := newCall(t, next, full, gone, failed, other)

	chain := func(args ...string) (string, error) {
		c.out.Reset()
		cmd := newChainCommand(c.session)
		cmd.SetArgs(args)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		return c.out.String(), err
	}
	text, err := chain("shop/data", "-o", "json")
	require.NoError(t, err)
	var images []Image
	require.NoError(t, json.Unmarshal([]byte(text), &images))
	require.Len(t, images, 3)
	require.Equal(t, []string{"DeltaFailed", "NoParent"}, images[0].Reasons)
	require.EqualValues(t, 1<<20, images[0].ReadBytes)
	require.EqualValues(t, 2<<20, images[0].LogicalBytes)
	require.Equal(t, "daily-1", images[1].Parent)
	require.Equal(t, "snap-2", images[1].Base)
	require.Equal(t, "repo-of-another-cluster", images[2].Parent)

	text, err = chain("shop/data", "--all", "-o", "wide")
	require.NoError(t, err)
	require.Regexp(t, `daily-4 .* Failed .* no space`, text)
	require.Regexp(t, `daily-4 .* Failed +- +- +1000MiB +- +- +- +- `, text, "0 bytes say nothing")
	c = newCall(t, failed)
	_, err = chain("shop/data")
	require.EqualError(t, err, "no backup of volume shop/data has an image: --all shows those without one, and -o wide why")
	_, err = chain("shop/missing")
	require.ErrorContains(t, err, "no DataUpload of volume shop/missing")
	for _, bad := range []string{"data", "/data", "shop/", "a/b/c"} {
		_, err = chain(bad)
		require.ErrorContains(t, err, "want NAMESPACE/PVC", bad)
	}
	_, err = chain("shop/data", "-o", "xml")
	require.ErrorContains(t, err, `output format is "xml"`)
}

func TestBases(t *testing.T) {
	base := func(name, pvc string, age time.Duration) *snapshotv1.VolumeSnapshotContent {
		handle, size := "snap-"+name, int64(1<<30)
		c := &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{
				Name:   name,
				Labels: map[string]string{identity.LabelRetained: "auto", identity.LabelVolumeNamespace: "shop", identity.LabelVolume: pvc, identity.LabelBackup: "daily"},
				Annotations: map[string]string{
					identity.LabelVolumeNamespace: "shop", identity.LabelVolume: pvc, identity.LabelBackup: "daily",
					identity.AnnotationVolumeHandle: "volume-of-" + pvc,
					identity.AnnotationSnapshotTime: noon.Add(-age).UTC().Format(time.RFC3339Nano),
				},
			},
			Spec:   snapshotv1.VolumeSnapshotContentSpec{Driver: "csi.example.com", Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &handle}},
			Status: &snapshotv1.VolumeSnapshotContentStatus{RestoreSize: &size},
		}
		c.Spec.VolumeSnapshotRef.Namespace = "velero"
		return c
	}
	none := newCall(t)
	cmd := newBasesCommand(none.session)
	cmd.SetArgs(nil)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.Equal(t, "No storage snapshot is retained in namespace velero.\n", none.errOut.String())

	c := newCall(t, base("b2", "data", time.Hour), base("b1", "data", 2*time.Hour), base("b3", "log", 3*time.Hour))
	found, err := c.bases(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 3)
	damaged := base("b4", "data", 0)
	damaged.Annotations = nil
	c = newCall(t, base("b1", "data", time.Hour), damaged)
	one, err := c.bases(t.Context())
	require.ErrorContains(t, err, "b4")
	require.Len(t, one, 1, "what can be read is shown")
	for n, want := range []struct {
		name   string
		newest bool
	}{{"b1", false}, {"b2", true}, {"b3", true}} {
		require.Equal(t, want.name, found[n].Name)
		require.Equal(t, want.newest, found[n].Newest, want.name)
	}
}

func TestCancel(t *testing.T) {
	c := newCall(t, upload("u1", "daily-1", velerov2alpha1.DataUploadPhaseInProgress, time.Hour),
		upload("u2", "daily-1", velerov2alpha1.DataUploadPhaseCompleted, time.Hour))
	cancel := func(name string) error {
		cmd := newCancelCommand(c.session)
		cmd.SetArgs([]string{name})
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		return cmd.ExecuteContext(t.Context())
	}
	require.NoError(t, cancel("daily-1"))
	for name, want := range map[string]bool{"u1": true, "u2": false} {
		du := &velerov2alpha1.DataUpload{}
		require.NoError(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: name}, du))
		require.Equal(t, want, du.Spec.Cancel, name)
	}
	require.ErrorContains(t, cancel("daily-7"), "no upload or download of daily-7 in namespace velero runs or waits")
}

func TestParseCreate(t *testing.T) {
	for name, tc := range map[string]struct {
		args      []string
		want      creation
		namespace string
		err       string
	}{
		"Velero's flags stay":   {[]string{"b", "--include-namespaces", "shop", "--ttl=24h"}, creation{velero: []string{"b", "--include-namespaces", "shop", "--ttl=24h"}}, "velero", ""},
		"ours go":               {[]string{"b", "--full", "--wait"}, creation{Type: "full", wait: true, velero: []string{"b"}}, "velero", ""},
		"incremental":           {[]string{"--incremental", "b", "-w"}, creation{Type: "incremental", wait: true, velero: []string{"b"}}, "velero", ""},
		"the namespace":         {[]string{"b", "-n", "backup"}, creation{velero: []string{"b"}}, "backup", ""},
		"the context":           {[]string{"b", "--context=c", "--namespace=x"}, creation{velero: []string{"b", "--kubecontext", "c"}}, "x", ""},
		"in place":              {[]string{"r", "--in-place"}, creation{inPlace: "true", velero: []string{"r"}}, "velero", ""},
		"in any place":          {[]string{"r", "--in-place=any-volume"}, creation{inPlace: "any-volume", velero: []string{"r"}}, "velero", ""},
		"in no known place":     {[]string{"r", "--in-place=yes"}, creation{}, "", `--in-place is "yes", want true (which it is without a value), any-volume or false`},
		"in an empty place":     {[]string{"r", "--in-place="}, creation{}, "", `--in-place is "", want true`},
		"both types":            {[]string{"b", "--full", "--incremental"}, creation{}, "", "exclude each other"},
		"no value":              {[]string{"b", "-n"}, creation{}, "", "flag -n needs a value"},
		"an output of its own":  {[]string{"b", "-o", "json"}, creation{}, "", "does not go with this command"},
		"an output with a sign": {[]string{"b", "--output=json"}, creation{}, "", "does not go with this command"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCall(t).session
			got, err := s.parseCreate(tc.args)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.namespace, s.namespace())
		})
	}
}

// Each flag goes with the kinds that it means something for.
func TestCheckCreation(t *testing.T) {
	for name, tc := range map[string]struct {
		creation creation
		kind     string
		err      string
	}{
		"backup":                {creation{Type: "full", wait: true}, "backup", ""},
		"restore":               {creation{inPlace: "true", wait: true}, "restore", ""},
		"schedule waits":        {creation{wait: true}, "schedule", "a schedule is not waited for"},
		"restore has a type":    {creation{Type: "full"}, "restore", "a restore has no type"},
		"backup is in place":    {creation{inPlace: "true"}, "backup", "only a restore is in place"},
		"schedule is in place ": {creation{inPlace: "false"}, "schedule", "only a restore is in place"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.creation.check(tc.kind); tc.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tc.err)
			}
		})
	}
	require.Equal(t, map[string]string{"blockmover.io/backup-type": "full"}, creation{Type: "full"}.annotations())
	require.Equal(t, map[string]string{"blockmover.io/in-place": "any-volume"}, creation{inPlace: "any-volume"}.annotations())
}

// A restore in place restores only PVCs, unless somebody chooses the kinds.
func TestOnlyClaims(t *testing.T) {
	for name, tc := range map[string]struct {
		creation creation
		want     []string
	}{
		"in place":        {creation{inPlace: "true", velero: []string{"r"}}, []string{"r", "--include-resources", "persistentvolumeclaims"}},
		"not in place":    {creation{inPlace: "false", velero: []string{"r"}}, []string{"r"}},
		"not said":        {creation{velero: []string{"r"}}, []string{"r"}},
		"kinds chosen":    {creation{inPlace: "true", velero: []string{"r", "--include-resources=pods"}}, []string{"r", "--include-resources=pods"}},
		"kinds left out":  {creation{inPlace: "true", velero: []string{"r", "--exclude-resources", "pods"}}, []string{"r", "--exclude-resources", "pods"}},
		"other selection": {creation{inPlace: "true", velero: []string{"r", "--selector", "a=b"}}, []string{"r", "--selector", "a=b", "--include-resources", "persistentvolumeclaims"}},
	} {
		require.Equal(t, tc.want, tc.creation.onlyClaims(), name)
	}
}

func TestBar(t *testing.T) {
	for percent, want := range map[int]string{-5: "[--------------------]", 0: "[--------------------]", 52: "[##########----------]", 100: "[####################]", 120: "[####################]"} {
		require.Equal(t, want, bar(percent))
	}
}

// --wait ends with a restore, too.
func TestWaitForARestore(t *testing.T) {
	c := newCall(t, &velerov1.Restore{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "r"}, Status: velerov1.RestoreStatus{Phase: velerov1.RestorePhasePartiallyFailed}},
		&velerov2alpha1.DataDownload{
			ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "d", Labels: map[string]string{velerov1.RestoreNameLabel: "r"}},
			Spec: velerov2alpha1.DataDownloadSpec{
				DataMover: "blockmover", TargetVolume: velerov2alpha1.TargetVolumeSpec{Namespace: "shop", PVC: "disk"},
				DataMoverConfig: map[string]string{"inPlace": "uid"},
			},
		})
	require.EqualError(t, c.wait(t.Context(), "Restore", "r"), "Restore r is PartiallyFailed: see `velero restore describe r --details`")
	require.Contains(t, c.out.String(), "Restore r: PartiallyFailed")
	require.Contains(t, c.out.String(), "Download in place of shop/disk for r")
}

// --wait ends with the backup, and fails unless it is complete.
func TestWait(t *testing.T) {
	for phase, want := range map[velerov1.BackupPhase]string{velerov1.BackupPhaseCompleted: "", velerov1.BackupPhasePartiallyFailed: "Backup b is PartiallyFailed: see `velero backup describe b --details`"} {
		c := newCall(t, &velerov1.Backup{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "b"}, Status: velerov1.BackupStatus{Phase: phase}},
			upload("u1", "b", velerov2alpha1.DataUploadPhaseCompleted, time.Hour))
		err := c.wait(t.Context(), "Backup", "b")
		if want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, want)
		}
		require.Contains(t, c.out.String(), "Backup b: "+string(phase))
		require.Contains(t, c.out.String(), "Upload of shop/data for b: Completed")
	}
	require.ErrorContains(t, newCall(t).wait(t.Context(), "Backup", "gone"), "get Backup gone")
}

// A backup that is Completed without a volume of ours, and a restore with warnings, are told so.
func TestConclude(t *testing.T) {
	for name, tc := range map[string]struct {
		kind    string
		is      outcome
		volumes int
		err     string
		note    string
	}{
		"complete":          {"Backup", outcome{phase: "Completed"}, 1, "", ""},
		"no volume":         {"Backup", outcome{phase: "Completed"}, 0, "", "Blockmover has backed up no volume: that takes --snapshot-move-data --data-mover blockmover, or"},
		"nothing restored":  {"Restore", outcome{phase: "Completed", warnings: 2}, 0, "", "Blockmover has restored no volume: a PVC that exists"},
		"warnings":          {"Restore", outcome{phase: "Completed", warnings: 2}, 1, "", "warnings: 2: see `velero restore describe name --details`"},
		"not valid":         {"Backup", outcome{phase: "FailedValidation", invalid: []string{"no such location", "no such policy"}}, 0, "Backup name is FailedValidation: no such location; no such policy", ""},
		"failed with notes": {"Restore", outcome{phase: "PartiallyFailed", warnings: 2}, 0, "Restore name is PartiallyFailed: see `velero restore describe name --details`", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCall(t)
			err := c.conclude(tc.kind, "name", tc.is, tc.volumes)
			if tc.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, tc.err)
			}
			if tc.note == "" {
				require.Empty(t, c.errOut.String())
			}
			require.Contains(t, c.errOut.String(), tc.note)
		})
	}
}

// What Velero says is shown without the list of all its flags.
func TestRefusal(t *testing.T) {
	require.Equal(t, "velero: a backup name is required", refusal("backup", "velero: a backup name is required\n"))
	require.Equal(t, "unknown flag: --ful: `velero backup create --help` lists the flags of Velero, and `kubectl blockmover backup create --help` ours",
		refusal("backup", "Error: unknown flag: --ful\nUsage:\n  velero backup create NAME [flags]\n\nvelero: unknown flag: --ful\n"))
}

// The help of a create command names our own flags.
func TestCreateHelp(t *testing.T) {
	for kind, flags := range map[string][]string{"backup": {"--full", "--incremental", "--wait"}, "schedule": {"--full", "--incremental"}, "restore": {"--in-place", "--in-place=any-volume", "--wait"}} {
		cmd := NewCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetArgs([]string{kind, "create", "--help"})
		require.NoError(t, cmd.ExecuteContext(t.Context()))
		for _, flag := range flags {
			require.Contains(t, out.String(), "\n  "+flag+" ", kind)
		}
	}
}

func TestTagOf(t *testing.T) {
	for image, want := range map[string]string{
		"blockmover:v1": "v1", "host:5000/a/blockmover": "latest", "host:5000/a/blockmover:v2": "v2", "blockmover@sha256:12": "",
		"host:5000/blockmover:v2@sha256:12": "v2",
	} {
		require.Equal(t, want, tagOf(image), image)
	}
}

// A doctor that finds something broken ends with an error, after it has shown the table.
func TestDoctor(t *testing.T) {
	c := newCall(t, &velerov1.BackupStorageLocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: "default"},
		Status:     velerov1.BackupStorageLocationStatus{Phase: velerov1.BackupStorageLocationPhaseUnavailable, Message: "no such bucket"},
	})
	cmd := newDoctorCommand(c.session)
	cmd.SetArgs(nil)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	require.True(t, errors.Is(cmd.ExecuteContext(t.Context()), errDoctor))
	text := c.out.String()
	require.Regexp(t, `storage location +error +default +it is Unavailable no such bucket +check its credential`, text)
	require.Regexp(t, `kinds of Velero +error +datauploads.velero.io +there is no such kind`, text)
	require.Regexp(t, `plugin and manager +error +Deployment velero/blockmover +it does not exist`, text)
	require.Regexp(t, `mover pods +error .*cannot look without ConfigMap velero/blockmover-config +apply deploy/config.yaml`, text)
	require.Regexp(t, `nodes +error .*no node can run a mover pod`, text)
}

// The server of Velero is looked at without a manager, too: its plugin, and the feature of its own
// that takes the snapshots.
func TestDoctorLooksAtTheServer(t *testing.T) {
	deployment := func(name string, plugin string, args ...string) *appsv1.Deployment {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "velero", Name: name}}
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Name: name, Image: "blockmover:v1", Args: args}}
		if plugin != "" {
			d.Spec.Template.Spec.InitContainers = []corev1.Container{{Name: "plugin", Image: plugin}}
		}
		return d
	}
	find := func(objects ...client.Object) string {
		found, err := newCall(t, objects...).checkParts(t.Context())
		require.NoError(t, err)
		var text strings.Builder
		for _, f := range found {
			_, _ = fmt.Fprintf(&text, "%s %s: %s: %s\n", f.Verdict, f.Object, f.What, f.Do)
		}
		return text.String()
	}
	manager := deployment("blockmover", "")
	alone := find(deployment("velero", "", "server", "--features=EnableCSI"))
	require.Contains(t, alone, "error plugin: Velero's Deployment has no init container with our plugin")
	require.Contains(t, alone, "error Deployment velero/velero: no replica is available: kubectl -n velero describe pods -l app=velero")
	require.NotContains(t, alone, "EnableCSI")
	require.NotContains(t, find(deployment("velero", "velero-plugin-blockmover:v1", "server")), "the manager is", "there is none to compare with")

	const lacks = "warning Deployment velero/velero: its server has no feature flag EnableCSI"
	require.Contains(t, find(manager, deployment("velero", "velero-plugin-blockmover:v1", "server", "--features=Other")), lacks)
	for _, args := range [][]string{{"server", "--features=Other,EnableCSI"}, {"server", "--features", "EnableCSI"}} {
		require.NotContains(t, find(manager, deployment("velero", "velero-plugin-blockmover:v1", args...)), lacks)
	}
}
