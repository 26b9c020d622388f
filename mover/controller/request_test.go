package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/task"
)

// TestRateLimitReachesThePod: the task has the rate limit of the configuration.
func TestRateLimitReachesThePod(t *testing.T) {
	w := uploadWorld(t)
	flow, ok := w.uploads.flow.(byVolume)
	require.True(t, ok)
	flow.snapshots.live = edited(flow.snapshots.live, func(c *config.Config) { c.RateLimit = resource.MustParse("50Mi") })
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		require.EqualValues(t, 50<<20, request.RateLimit)
		return true
	}
	require.Equal(t, phase.Completed, w.run(w.uploads, "du").Status.Phase)
}

// TestRepeatedRestoreGoesOn: only a restore that an earlier mover pod may have begun reads
// the device first.
func TestRepeatedRestoreGoesOn(t *testing.T) {
	w := downloadWorld(t)
	var resume []bool
	w.podEnds = func(pod *corev1.Pod) bool {
		request, err := task.DecodeRequest(pod.Spec.Containers[0].Env[0].Value)
		require.NoError(t, err)
		if !w.operation(w.downs, "dd").Status.Attempt.Started {
			return false
		}
		resume = append(resume, request.Restore.Resume)
		if len(resume) == 1 {
			require.NoError(t, w.c.Delete(w.ctx, pod))
			return false
		}
		return true
	}
	require.Equal(t, phase.Completed, w.run(w.downs, "dd").Status.Phase)
	require.Equal(t, []bool{false, true}, resume)
}
