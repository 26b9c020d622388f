package config_test

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/internal/config"
)

func TestDefaults(t *testing.T) {
	live, err := config.Follow("", logr.Discard())
	require.NoError(t, err)
	c := live.Get()
	require.Equal(t, 4, c.LoadConcurrency.GlobalConfig)
	require.Equal(t, 3, c.Attempts)
	require.Equal(t, 30*time.Minute, c.PreparingTimeout.Duration)
	require.Equal(t, 24*time.Hour, c.PodDeadline.Duration)
	require.Equal(t, "8Gi", c.ScratchSize.String())
	require.Equal(t, "blockmover-worker", c.ServiceAccountName)
	require.Zero(t, c.SecurityContext.RunAsUser)
	require.Zero(t, c.RateLimit.Value())
}

func TestParse(t *testing.T) {
	c, err := config.Parse([]byte(`
loadConcurrency:
  globalConfig: 2
  perNodeConfig:
  - nodeSelector: {matchLabels: {disk: slow}}
    number: 1
  prepareQueueLength: 5
loadAffinity:
- nodeSelector: {matchLabels: {backup: "yes"}}
- nodeSelector: {matchLabels: {zone: a}}
  storageClass: zonal
backupPVC:
  gold: {storageClass: gold-ro, readOnly: true, spcNoRelabeling: true, annotations: {a: b}}
restorePVC: {ignoreDelayBinding: true}
podResources: {cpuRequest: "1", memoryLimit: 2Gi, cpuLimit: "0"}
priorityClassName: low
podAnnotations: {x: y}
podLabels: {team: storage}
tolerations:
- {key: storage, operator: Exists}
securityContext: {runAsUser: 65532, runAsGroup: 65532, supplementalGroups: [6]}
scratchSize: 1Gi
rateLimit: 50Mi
preparingTimeout: 5m
podDeadline: 1h
attempts: 1
`))
	require.NoError(t, err)
	require.Equal(t, 5, c.LoadConcurrency.PrepareQueueLength)
	require.True(t, c.BackupPVC["gold"].ReadOnly)
	require.Equal(t, []int64{6}, c.SecurityContext.SupplementalGroups)
	require.EqualValues(t, 50<<20, c.RateLimit.Value())
	require.Equal(t, 5*time.Minute, c.PreparingTimeout.Duration)

	require.Equal(t, map[string]string{"zone": "a"}, c.AffinityFor("zonal").MatchLabels)
	require.Equal(t, map[string]string{"backup": "yes"}, c.AffinityFor("other").MatchLabels)
	require.Equal(t, map[string]string{"backup": "yes"}, c.AffinityFor("").MatchLabels)

	for want, node := range map[int]map[string]string{2: nil, 1: {"disk": "slow"}} {
		slots, err := c.LoadConcurrency.Slots(node)
		require.NoError(t, err)
		require.Equal(t, want, slots)
	}

	r, err := c.PodResources.Requirements()
	require.NoError(t, err)
	require.Equal(t, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}, r.Requests)
	require.Equal(t, corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("2Gi")}, r.Limits)
}

func TestParseRefuses(t *testing.T) {
	for document, want := range map[string]string{
		"unknown: 1":                                           `unknown field "unknown"`,
		"attempts: many":                                       "attempts",
		"attempts: -1":                                         "attempts is -1",
		"attempts: 1\nattempts: 2":                             "attempts",
		"preparingTimeout: soon":                               "soon",
		"podDeadline: 1ms":                                     "podDeadline is 1ms",
		"rateLimit: 50":                                        "rateLimit is 50, want 0 for none",
		"rateLimit: -1Mi":                                      "rateLimit is -1Mi",
		"rateLimit: fast":                                      "quantities",
		"loadConcurrency: {globalConfig: -1}":                  "loadConcurrency.globalConfig is -1",
		"loadConcurrency: {prepareQueueLength: -1}":            "loadConcurrency.prepareQueueLength is -1",
		"loadConcurrency: {perNodeConfig: [{number: -1}]}":     "loadConcurrency.perNodeConfig[0].number is -1",
		"podResources: {cpuRequest: lots}":                     `podResources.cpuRequest is "lots"`,
		"podResources: {cpuRequest: \"2\", cpuLimit: \"1\"}":   "more than its limit",
		"env: [{name: BLOCKMOVER_TASK, value: x}]":             "env[0].name is BLOCKMOVER_TASK, which the mover sets itself",
		"env: [{name: HOME, value: x}]":                        "env[0].name is HOME",
		"env: [{name: LD_PRELOAD, value: x}]":                  "env[0].name is LD_PRELOAD",
		"env: [{name: A}, {name: A}]":                          "env[1].name is A, which is there twice",
		"env: [{name: 'a b'}]":                                 `env[0].name is "a b"`,
		"env: [{value: x}]":                                    `env[0].name is ""`,
		"env: [{name: A, value: x, valueFrom: {}}]":            "env[0] (A) has a value and a valueFrom",
		"backupPVC: {gold: {secretNames: [A_B]}}":              `backupPVC.gold.secretNames has "A_B"`,
		"backupPVC: {gold: {configMapNames: ['']}}":            `backupPVC.gold.configMapNames has ""`,
		"restorePVC: {secretNames: [velero-repo-credentials]}": "restorePVC.secretNames has velero-repo-credentials, which is a name of Velero's own",
		"restorePVC: {configMapNames: ['a/b']}":                `restorePVC.configMapNames has "a/b"`,
		"loadAffinity: [{nodeSelector: {matchExpressions: [{key: a, operator: Like}]}}]": "loadAffinity[0].nodeSelector",
	} {
		_, err := config.Parse([]byte(document))
		require.ErrorContains(t, err, want, document)
	}
}

// A restore has a cache volume from the threshold on. A size that is not known is no reason against one.
func TestCacheClass(t *testing.T) {
	c, err := config.Parse([]byte("cachePVC: {storageClass: fast, residentThresholdInMB: 2}"))
	require.NoError(t, err)
	for size, want := range map[int64]string{0: "fast", 1: "", 2<<20 - 1: "", 2 << 20: "fast", 1 << 40: "fast"} {
		require.Equal(t, want, c.CacheClass(size), size)
	}
	c, err = config.Parse(nil)
	require.NoError(t, err)
	require.Empty(t, c.CacheClass(1<<40))
}
