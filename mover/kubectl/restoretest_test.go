package kubectl

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/fscheck"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/mover/exposer"
)

// tester has a cluster in which restores end with a code, and checks and verifications print a log.
func tester(t *testing.T, code int32, check, verify string, uploads ...*velerov2alpha1.DataUpload) (*call, *[]batchv1.Job) {
	t.Helper()
	c, _ := verifier(t, verify, corev1.PodFailed, uploads...)
	jobs := &[]batchv1.Job{}
	fake, ok := c.Client.(client.WithWatch)
	require.True(t, ok)
	c.Client = interceptor.NewClient(fake, interceptor.Funcs{
		Create: func(ctx context.Context, under client.WithWatch, o client.Object, options ...client.CreateOption) error {
			if err := under.Create(ctx, o, options...); err != nil {
				return err
			}
			job, ok := o.(*batchv1.Job)
			if !ok || len(job.Spec.Template.Spec.InitContainers) == 0 {
				return nil
			}
			*jobs = append(*jobs, *job)
			pod := &corev1.Pod{}
			require.NoError(t, under.Get(ctx, client.ObjectKey{Namespace: job.Namespace, Name: job.Name + "-pod"}, pod))
			pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{
				Name: exposer.RestoreContainer, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}},
			}}
			if code == 0 {
				pod.Status.Phase = corev1.PodSucceeded
			}
			return under.Status().Update(ctx, pod)
		},
	})
	c.podLogs = func(_ context.Context, _, container string) (io.ReadCloser, error) {
		text := map[string]string{exposer.RestoreContainer: "restore 10 %\nblockmover: no such host\n", exposer.CheckContainer: check, "": verify}[container]
		return io.NopCloser(strings.NewReader(text)), nil
	}
	return c, jobs
}

func (c *call) tested(t *testing.T, name string) *operation.Tested {
	t.Helper()
	du := &velerov2alpha1.DataUpload{}
	require.NoError(t, c.Client.Get(t.Context(), client.ObjectKey{Namespace: "velero", Name: name}, du))
	v, err := operation.Of(du).TestedOf()
	require.NoError(t, err)
	return v
}

func (c *call) events(t *testing.T) (reasons []string) {
	t.Helper()
	events := &corev1.EventList{}
	require.NoError(t, c.Client.List(t.Context(), events))
	for _, e := range events.Items {
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

func reportOf(t *testing.T, r fscheck.Report) string {
	t.Helper()
	var text strings.Builder
	require.NoError(t, r.Write(&text))
	return "$ e2fsck -fn\n" + text.String()
}

func TestRestoreTest(t *testing.T) {
	const damage = `{"snapshotID":"s1","ok":false,"size":1048576,"damagedBytes":4096,"damage":[{"offset":65536,"length":4096,"error":"blob not found"}]}` + "\n"
	for name, tc := range map[string]struct {
		code          int32
		check, verify string
		want          fscheck.Result
		detail        string
		verified      *bool
		events        []string
		fails         bool
	}{
		"sound":          {check: reportOf(t, fscheck.Report{Result: fscheck.OK, Filesystem: "ext4", Detail: "the journal was replayed"}), want: fscheck.OK, detail: "the journal was replayed", verified: truth(true)},
		"no file system": {check: reportOf(t, fscheck.Report{Result: fscheck.None}), want: fscheck.None, verified: truth(true)},
		"unclear":        {check: reportOf(t, fscheck.Report{Result: fscheck.Unclear, Filesystem: "xfs"}), want: fscheck.Unclear, verified: truth(true)},
		"errors":         {check: reportOf(t, fscheck.Report{Result: fscheck.Errors, Filesystem: "ext4", Detail: "Inode 2"}), want: fscheck.Errors, detail: "Inode 2", verified: truth(true), events: []string{"FileSystemErrors"}, fails: true},
		"long line":      {check: strings.Repeat("4711 ", 1<<20) + "\n" + reportOf(t, fscheck.Report{Result: fscheck.Errors, Filesystem: "ext4", Detail: "Inode 2"}), want: fscheck.Errors, detail: "Inode 2", verified: truth(true), events: []string{"FileSystemErrors"}, fails: true},
		"no result":      {check: "exec: e2fsck: not found\n", want: fscheck.Failed, detail: "the check has no result: exec: e2fsck: not found", verified: truth(true), events: []string{"RestoreTestFailed"}, fails: true},
		"damaged":        {code: 1, verify: damage, want: operation.Damaged, detail: "4.0KiB cannot be read", verified: truth(false), events: []string{"ImageDamaged"}, fails: true},
		"unreachable":    {code: 1, verify: "no such host\n", want: fscheck.Failed, detail: "restore: blockmover: no such host", events: []string{"RestoreTestFailed"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			u := image("u1", "daily-1", "data", "s1", time.Hour)
			u.Spec.CSISnapshot = &velerov2alpha1.CSISnapshotSpec{StorageClass: "gold"}
			c, jobs := tester(t, tc.code, tc.check, tc.verify, u)
			err := c.verify(t, "shop/data", "--restore-test")
			require.Equal(t, tc.fails, err != nil, err)
			got := c.tested(t, "u1")
			require.Equal(t, tc.want, got.Result)
			require.Contains(t, got.Detail, tc.detail)
			require.Equal(t, tc.events, c.events(t))
			if v := c.verified(t, "u1"); tc.verified == nil {
				require.Nil(t, v)
			} else {
				require.Equal(t, *tc.verified, v.OK)
			}
			require.Len(t, *jobs, 1)
			left := &batchv1.JobList{}
			require.NoError(t, c.Client.List(t.Context(), left))
			require.Empty(t, left.Items)
		})
	}
}

func truth(b bool) *bool { return &b }

// The Job has one volume, which goes with its pod, and no privileges.
func TestRestoreTestJob(t *testing.T) {
	u := image("u1", "daily-1", "data", "s1", time.Hour)
	u.Spec.CSISnapshot = &velerov2alpha1.CSISnapshotSpec{StorageClass: "gold"}
	run := func(args ...string) corev1.PodSpec {
		c, jobs := tester(t, 0, reportOf(t, fscheck.Report{Result: fscheck.OK}), "", u.DeepCopy())
		require.NoError(t, c.verify(t, append([]string{"shop/data", "--restore-test"}, args...)...))
		job := (*jobs)[0]
		require.NotNil(t, job.Spec.TTLSecondsAfterFinished)
		require.NotNil(t, job.Spec.ActiveDeadlineSeconds)
		return job.Spec.Template.Spec
	}
	spec := run()
	restore, check := spec.InitContainers[0], spec.Containers[0]
	require.Equal(t, []string{
		"image", "restore", "--repo", "velero://velero/shop-default-kopia", "--snapshot", "s1", "--device", "/dev/blockmover", "--verify",
	}, restore.Args)
	require.Equal(t, "mover:1", restore.Image)
	require.Equal(t, "mover-tools:1", check.Image)
	require.Equal(t, "/fscheck", check.Command[0])
	require.Empty(t, check.Env)
	require.Empty(t, check.VolumeMounts, "what checks has no credential")
	require.False(t, *spec.AutomountServiceAccountToken, "and no token")
	require.Contains(t, restore.VolumeMounts, corev1.VolumeMount{Name: "api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true})
	for _, container := range []corev1.Container{restore, check} {
		require.Equal(t, []corev1.VolumeDevice{{Name: "device", DevicePath: "/dev/blockmover"}}, container.VolumeDevices)
		require.Equal(t, []corev1.Capability{"ALL"}, container.SecurityContext.Capabilities.Drop)
		require.True(t, *container.SecurityContext.ReadOnlyRootFilesystem)
	}
	claim := deviceOf(t, spec)
	require.Equal(t, corev1.PersistentVolumeBlock, *claim.VolumeMode)
	require.Equal(t, "gold", *claim.StorageClassName)
	require.EqualValues(t, imageOf(operation.Of(u)).LogicalBytes, claim.Resources.Requests.Storage().Value())

	spec = run("--storage-class", "tin", "--tools-image", "other:2")
	require.Equal(t, "tin", *deviceOf(t, spec).StorageClassName)
	require.Equal(t, "other:2", spec.Containers[0].Image)
}

// deviceOf returns the claim of the scratch volume.
func deviceOf(t *testing.T, spec corev1.PodSpec) corev1.PersistentVolumeClaimSpec {
	t.Helper()
	for _, v := range spec.Volumes {
		if v.Name == "device" {
			return v.Ephemeral.VolumeClaimTemplate.Spec
		}
	}
	t.Fatal("there is no scratch volume")
	return corev1.PersistentVolumeClaimSpec{}
}

// A storage class that keeps volumes would keep the scratch volume of each test.
func TestRestoreTestClass(t *testing.T) {
	u := image("u1", "daily-1", "data", "s1", time.Hour)
	u.Spec.CSISnapshot = &velerov2alpha1.CSISnapshotSpec{StorageClass: "gold"}
	c, jobs := tester(t, 0, reportOf(t, fscheck.Report{Result: fscheck.OK}), "", u)
	keep := corev1.PersistentVolumeReclaimRetain
	require.NoError(t, c.Client.Create(t.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, ReclaimPolicy: &keep}))
	require.ErrorContains(t, c.verify(t, "shop/data", "--restore-test"), "StorageClass gold does not delete the volumes")
	require.Empty(t, *jobs)
	require.NoError(t, c.verify(t, "shop/data", "--restore-test", "--storage-class", "tin"))
	require.Len(t, *jobs, 1)
}

// A pod that does not start is a test that could not be made, and its Job goes.
func TestRestoreTestDoesNotStart(t *testing.T) {
	c, _ := verifier(t, "", corev1.PodPending, image("u1", "daily-1", "data", "s1", time.Hour))
	require.ErrorContains(t, c.verify(t, "shop/data", "--restore-test", "--timeout", "3s"), "1 of 1 restore tests")
	require.Equal(t, fscheck.Failed, c.tested(t, "u1").Result)
	require.Contains(t, c.tested(t, "u1").Detail, "its pod is pending")
	require.Nil(t, c.verified(t, "u1"))
	require.Equal(t, []string{"RestoreTestFailed"}, c.events(t))
	left := &batchv1.JobList{}
	require.NoError(t, c.Client.List(t.Context(), left))
	require.Empty(t, left.Items)
}

func TestRestoreTestBudget(t *testing.T) {
	c, jobs := tester(t, 0, reportOf(t, fscheck.Report{Result: fscheck.OK}), "", image("u1", "daily-1", "data", "s1", time.Hour), image("u2", "daily-1", "log", "s2", time.Hour))
	require.NoError(t, c.verify(t, "--all", "--restore-test", "--max-time", "1ns"))
	require.Empty(t, *jobs)
	tested := image("u1", "daily-1", "data", "s1", time.Hour)
	tested.Annotations = map[string]string{"blockmover.io/restore-tested": operation.Tested{At: noon.Time}.String()}
	c, jobs = tester(t, 0, reportOf(t, fscheck.Report{Result: fscheck.OK}), "", tested, image("u2", "daily-1", "log", "s2", time.Hour))
	require.NoError(t, c.verify(t, "--all", "--restore-test", "--max-bytes", "1"))
	require.Len(t, *jobs, 1)
	require.NotNil(t, c.tested(t, "u2"), "the one that was never tested comes first")
}

func TestToolsImage(t *testing.T) {
	for mover, want := range map[string]string{
		"blockmover": "blockmover-tools", "r.example.com:5000/a/blockmover:v1": "r.example.com:5000/a/blockmover-tools:v1",
		"r.example.com:5000/blockmover": "r.example.com:5000/blockmover-tools", "r/b@sha256:0a": "r/b-tools", "r:5000/b:v1@sha256:0a": "r:5000/b-tools:v1",
	} {
		require.Equal(t, want, toolsImageOf(mover))
	}
}

func TestChainShowsRestoreTest(t *testing.T) {
	text := func(v string) string {
		u := image("u1", "b", "data", "s1", time.Hour)
		u.ObjectMeta = metav1.ObjectMeta{Annotations: map[string]string{"blockmover.io/restore-tested": v}}
		return imageOf(operation.Of(u)).tested()
	}
	of := func(r fscheck.Result) string {
		return text(operation.Tested{At: noon.Time, Report: fscheck.Report{Result: r}}.String())
	}
	require.Equal(t, "2026-11-29", of(fscheck.OK))
	require.Equal(t, "2026-11-29", of(fscheck.None))
	require.Equal(t, "ERRORS", of(fscheck.Errors))
	require.Equal(t, "DAMAGED", of(operation.Damaged))
	require.Equal(t, "UNCLEAR", of(fscheck.Unclear))
	require.Equal(t, "never", text("{"))
}
