{{/*
The manifests of the kustomize base are the manifests of this chart: each template reads
files of the base, sets what kustomize would set, and the values. So there is one truth.
A test compares both: e2e/helm.

blockmover.render renders files of the base. It is called with the context and the names.
*/}}
{{- define "blockmover.render" -}}
{{- $root := index . 0 }}
{{- range $file := slice . 1 }}
{{- $text := required (printf "%s is missing in the chart" $file) ($root.Files.Get $file) }}
{{- range $document := splitList "\n---\n" $text }}
{{- $object := fromYaml $document }}
{{- if not $object.kind }}{{ fail (printf "%s: cannot be read: %v" $file $object) }}{{ end }}
{{- include "blockmover.place" (list $root $object) }}
{{- $special := printf "blockmover.%s" $object.kind }}
{{- if has $object.kind (list "ClusterRole" "ConfigMap" "CronJob" "Deployment" "PodMonitor" "PrometheusRule" "Role" "ServiceAccount" "ValidatingAdmissionPolicy") }}
{{- include $special (list $root $object) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}

{{/* Namespaces and names, as kustomize's namespace and nameSuffix set them. */}}
{{- define "blockmover.place" -}}
{{- $root := index . 0 }}{{ $object := index . 1 }}
{{- $suffix := $root.Values.clusterNameSuffix }}
{{- if has $object.kind (list "ClusterRole" "ClusterRoleBinding" "ValidatingAdmissionPolicy" "ValidatingAdmissionPolicyBinding") }}
{{- $_ := set $object.metadata "name" (print $object.metadata.name $suffix) }}
{{- else }}
{{- $_ := set $object.metadata "namespace" $root.Release.Namespace }}
{{- end }}
{{- if eq $object.kind "ClusterRoleBinding" }}
{{- $_ := set $object.roleRef "name" (print $object.roleRef.name $suffix) }}
{{- else if eq $object.kind "ValidatingAdmissionPolicyBinding" }}
{{- $_ := set $object.spec "policyName" (print $object.spec.policyName $suffix) }}
{{- end }}
{{- range $object.subjects }}
{{- $_ := set . "namespace" $root.Release.Namespace }}
{{- end }}
{{- end }}

{{/* The name of an image. It is called with the context and the values of the image. */}}
{{- define "blockmover.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* What the pods of the chart have in common. It is called with the context and the spec of a pod. */}}
{{- define "blockmover.pod" -}}
{{- $values := (index . 0).Values }}{{ $pod := index . 1 }}
{{- $container := first $pod.containers }}
{{- $_ := set $container "image" (include "blockmover.image" (list (index . 0) $values.image)) }}
{{- $_ := set $container "imagePullPolicy" $values.image.pullPolicy }}
{{- with $values.nodeSelector }}{{ $_ := set $pod "nodeSelector" (mergeOverwrite (dict) ($pod.nodeSelector | default dict) .) }}{{ end }}
{{- range $field := list "imagePullSecrets" "tolerations" "affinity" "priorityClassName" }}
{{- with index $values $field }}{{ $_ := set $pod $field . }}{{ end }}
{{- end }}
{{- end }}

{{- define "blockmover.Deployment" -}}
{{- $values := (index . 0).Values }}{{ $spec := (index . 1).spec }}
{{- $pod := $spec.template.spec }}
{{- include "blockmover.pod" (list (index . 0) $pod) }}
{{- $_ := set $spec "replicas" (int $values.replicas) }}
{{- with $values.topologySpreadConstraints }}{{ $_ := set $pod "topologySpreadConstraints" . }}{{ end }}
{{- $manager := first $pod.containers }}
{{- $_ := set $manager "resources" $values.resources }}
{{- $_ := set $manager "args" (concat $manager.args $values.extraArgs) }}
{{- $_ := set $manager "env" (concat $manager.env $values.extraEnv) }}
{{- $meta := $spec.template.metadata }}
{{- $_ := set $meta "labels" (merge $meta.labels $values.podLabels) }}
{{- $_ := set $meta "annotations" (merge $meta.annotations $values.podAnnotations) }}
{{- end }}

{{- define "blockmover.CronJob" -}}
{{- $values := (index . 0).Values }}{{ $spec := (index . 1).spec }}
{{- $pod := $spec.jobTemplate.spec.template.spec }}
{{- include "blockmover.pod" (list (index . 0) $pod) }}
{{- $run := $values.verify }}
{{- if eq (index . 1).metadata.name "blockmover-restore-test" }}{{ $run = $values.verify.restoreTest }}{{ end }}
{{- $_ := set $spec "schedule" $run.schedule }}
{{- with $values.verify.timeZone }}{{ $_ := set $spec "timeZone" . }}{{ end }}
{{- $args := list }}
{{- range (first $pod.containers).args }}
{{- if hasPrefix "--max-bytes=" . }}{{ $args = append $args (print "--max-bytes=" $run.maxBytes) }}
{{- else if hasPrefix "--max-time=" . }}{{ $args = append $args (print "--max-time=" $run.maxTime) }}
{{- else if hasPrefix "--timeout=" . }}{{ $args = append $args (print "--timeout=" $run.timeout) }}
{{- else }}{{ $args = append $args . }}{{ end }}
{{- end }}
{{- with $run.toolsImage }}{{ $args = append $args (print "--tools-image=" .) }}{{ end }}
{{- $_ := set (first $pod.containers) "args" $args }}
{{- end }}

{{/* The configuration is a document of the values. */}}
{{- define "blockmover.ConfigMap" -}}
{{- $values := (index . 0).Values }}{{ $object := index . 1 }}
{{- $config := deepCopy $values.config }}
{{- if and $values.imagePullSecrets (not (hasKey $config "imagePullSecrets")) }}
{{- $_ := set $config "imagePullSecrets" $values.imagePullSecrets }}
{{- end }}
{{- $_ := set $object.data "config.yaml" (print (toYaml $config) "\n") }}
{{- end }}

{{/* Which Secrets and ConfigMaps the manager may copy. An empty list would be all. */}}
{{- define "blockmover.Role" -}}
{{- $copies := (index . 0).Values.copies }}{{ $object := index . 1 }}
{{- if hasPrefix "blockmover-manager-copies" $object.metadata.name }}
{{- $_ := set (index $object.rules 0) "resourceNames" ($copies.secretNames | default (list "none")) }}
{{- $_ := set (index $object.rules 1) "resourceNames" ($copies.configMapNames | default (list "none")) }}
{{- end }}
{{- end }}

{{- define "blockmover.ClusterRole" -}}
{{- include "blockmover.Role" . }}
{{- end }}

{{- define "blockmover.ServiceAccount" -}}
{{- $accounts := (index . 0).Values.serviceAccount }}{{ $meta := (index . 1).metadata }}
{{- $annotations := dict "blockmover-manager" $accounts.managerAnnotations "blockmover-worker" $accounts.workerAnnotations }}
{{- with get $annotations $meta.name }}{{ $_ := set $meta "annotations" . }}{{ end }}
{{- end }}

{{- define "blockmover.PodMonitor" -}}
{{- $meta := (index . 1).metadata }}
{{- $_ := set $meta "labels" (merge $meta.labels (index . 0).Values.monitoring.labels) }}
{{- end }}

{{- define "blockmover.PrometheusRule" -}}
{{- include "blockmover.PodMonitor" . }}
{{- end }}

{{/* Mover pods may have another account. The policy for pods has to know it. */}}
{{- define "blockmover.ValidatingAdmissionPolicy" -}}
{{- $account := (index . 0).Values.config.serviceAccountName }}{{ $spec := (index . 1).spec }}
{{- if $account }}
{{- range $spec.validations }}
{{- $_ := set . "expression" (replace "['blockmover-worker']" (printf "['%s']" $account) .expression) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
A Job that changes Velero's Deployment. Both have one name: what is left of one that failed goes
before the other one begins.
*/}}
{{- define "blockmover.pluginJob" -}}
{{- $root := index . 0 }}
{{- $pod := fromYaml `
serviceAccountName: blockmover-plugin
restartPolicy: Never
enableServiceLinks: false
nodeSelector: {kubernetes.io/os: linux}
securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
containers:
- name: plugin
  command: [/blockmover, kubectl, plugin]
  resources:
    requests: {cpu: 10m, memory: 32Mi}
  securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
` }}
{{- $_ := set (first $pod.containers) "args" (concat (index . 2) (list (print "--deployment=" $root.Values.plugin.deployment) (print "--namespace=" $root.Release.Namespace))) }}
{{- include "blockmover.pod" (list $root $pod) -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: blockmover-plugin
  namespace: {{ $root.Release.Namespace | quote }}
  labels: {app.kubernetes.io/name: blockmover, app.kubernetes.io/component: plugin}
  annotations:
    helm.sh/hook: {{ index . 1 }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 0
  template:
    metadata:
      labels: {app.kubernetes.io/name: blockmover, app.kubernetes.io/component: plugin}
    spec: {{ toJson $pod }}
{{- end }}
